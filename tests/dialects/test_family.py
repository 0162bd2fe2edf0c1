"""Prompts and grammars of each family. The grammars are compiled by the real compiler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.dialects.base import Terminal
from gateway.dialects.choose import DIALECT_NAMES, choose_dialect
from gateway.generation import Chat, Grammar, Message, Tool, ToolCall, ToolChoice
from gateway.text.template_traits import Traits
from gateway.text.templates import ChatTemplate
from gateway.text.tokens import TextTokenizer
from gateway.worker.grammar.compiler import GrammarCompiler

FAMILIES = [name for name in DIALECT_NAMES if name not in ("plain", "generic", "qwen")]  # these two write as hermes
INTEGER = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/x"}},
    "required": ["a"],
    "$defs": {"x": {"type": "integer"}},
}
STRICT = Tool(name="f", description="Does f.", parameters=INTEGER, strict=True)
TOOLS = (STRICT, Tool(name="g"))
GOOD, BAD, OTHER = ("f", '{"a": 1}'), ("f", '{"a": "x"}'), ("g", "{}")
USER = Message(role="user", content="Hi")
LINE_BREAK = "\n"
NO_TOOLS = Traits(tools=None)


class Matcher:
    """Checks if a model could write a text under a dialect's grammar."""

    def __init__(self, tokenizer: Path) -> None:
        self._tokens = TextTokenizer.load(tokenizer)
        self._compiler = GrammarCompiler(tokenizer, self._tokens.vocab_size, [2])

    def terminal(self, text: str) -> str:
        index = self._tokens.special_id(text)
        return json.dumps(text) if index is None else f"<[{index}]>"

    def close(self) -> None:
        self._compiler.close()

    def accepts(
        self,
        family: str,
        text: str,
        *,
        terminal: Terminal | None = None,
        rendered: str = "",
        answer: Grammar | None = None,
        **chat: Any,
    ) -> bool:
        conversation = Chat(**{"messages": (USER,), "tools": TOOLS, **chat})
        grammar = choose_dialect(family, "").grammar(conversation, rendered, terminal or self.terminal, answer)
        assert grammar is not None
        compiled = self._compiler.compile(grammar)._matcher.deep_copy()
        ids = self._tokens.encode(text, begin=False)
        return bool(compiled.try_consume_tokens(ids) == len(ids) and compiled.is_accepting())


@pytest.fixture(scope="module")
def matcher(smollm2: Path) -> Iterator[Matcher]:
    matcher = Matcher(smollm2 / "tokenizer.json")
    yield matcher
    matcher.close()


def formatted(family: str, *calls: tuple[str, str]) -> str:
    return choose_dialect(family, "").format_calls(calls)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_required_choice_accepts_valid_calls_only(matcher: Matcher, family: str) -> None:
    required = ToolChoice(mode="required")
    assert matcher.accepts(family, formatted(family, GOOD), tool_choice=required)
    assert matcher.accepts(family, formatted(family, GOOD, OTHER, GOOD), tool_choice=required)
    can_write_text = family not in ("mistral", "phi", "granite")  # in an array, the model ends its calls with `]`
    assert matcher.accepts(family, f"{formatted(family, GOOD)}\nDone.", tool_choice=required) == can_write_text
    for text in (
        "",
        "Hello",
        formatted(family, BAD),
        formatted(family, GOOD, BAD),
        formatted(family, ("g", '{"b": 1}')),
        f"{formatted(family, GOOD)}{LINE_BREAK * 9}Done.",
    ):
        assert not matcher.accepts(family, text, tool_choice=required)


@pytest.mark.parametrize("family", FAMILIES)
def test_named_function_is_called_once(matcher: Matcher, family: str) -> None:
    named = ToolChoice(mode="required", names=("f",))
    assert matcher.accepts(family, formatted(family, GOOD), tool_choice=named)
    assert not matcher.accepts(family, f"{formatted(family, GOOD)}\nDone.", tool_choice=named)
    for calls in ((OTHER,), (GOOD, GOOD), (GOOD, OTHER)):
        assert not matcher.accepts(family, formatted(family, *calls), tool_choice=named)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_call_without_parallel_calls(matcher: Matcher, family: str) -> None:
    single = ToolChoice(mode="required", parallel=False)
    assert matcher.accepts(family, formatted(family, OTHER), tool_choice=single)
    assert not matcher.accepts(family, formatted(family, OTHER, GOOD), tool_choice=single)


@pytest.mark.parametrize("family", FAMILIES)
def test_strict_tool_constrains_calls_and_not_text(matcher: Matcher, family: str) -> None:
    for text in ("", "Hello, {you} <there>", formatted(family, GOOD), formatted(family, ("g", '{"any": [1]}'))):
        assert matcher.accepts(family, text)
    assert not matcher.accepts(family, formatted(family, BAD))
    if family != "llama":
        assert matcher.accepts(family, f"Let me see. {formatted(family, GOOD)} Done.")
        assert not matcher.accepts(family, f"Let me see. {formatted(family, BAD)}")


@pytest.mark.parametrize("family", FAMILIES)
def test_required_call_comes_after_reasoning(matcher: Matcher, family: str) -> None:
    fields: Any = {"rendered": "<think>\n", "tool_choice": ToolChoice(mode="required")}
    assert matcher.accepts(family, f"Hm, {{f}}?\n</think>{formatted(family, GOOD)}", **fields)
    assert not matcher.accepts(family, formatted(family, GOOD), **fields)


ANSWERS = (
    (Grammar(kind="json_object"), '{"any": 1}'),
    (Grammar(kind="json_schema", source='{"type": "array", "items": {"type": "integer"}}'), "[1, 2]"),
    (Grammar(kind="regex", source=r"a/b\.c(\n|/)"), "a/b.c/"),
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("answer", "text"), ANSWERS)
def test_response_format_also_accepts_a_call(matcher: Matcher, family: str, answer: Grammar, text: str) -> None:
    for right in (text, formatted(family, ("g", '{"any": [1]}')), formatted(family, GOOD)):
        assert matcher.accepts(family, right, answer=answer)
        assert matcher.accepts(family, f"Hm.</think>{right}", answer=answer, rendered="<think>")
    for wrong in ("words", formatted(family, BAD), f"{text} and words"):
        is_object = (family, answer.kind) == ("llama", "json_object")  # a call without a marker is an object too
        assert matcher.accepts(family, wrong, answer=answer) == (is_object and wrong == formatted(family, BAD))
    assert matcher.accepts(family, f"Hm.</think>{text}", answer=answer, rendered="<think>", tools=())
    assert not matcher.accepts(family, text, answer=answer, rendered="<think>", tools=())


def test_response_format_is_unchanged_without_tools_and_reasoning() -> None:
    for answer, _ in ANSWERS:
        assert choose_dialect("hermes", "").grammar(Chat(messages=(USER,)), "", json.dumps, answer) is answer


def test_required_call_overrides_response_format(matcher: Matcher) -> None:
    required = ToolChoice(mode="required")
    assert matcher.accepts("hermes", formatted("hermes", GOOD), answer=ANSWERS[0][0], tool_choice=required)
    assert not matcher.accepts("hermes", "{}", answer=ANSWERS[0][0], tool_choice=required)


@pytest.mark.parametrize("family", ["mistral", "mistral-args", "phi"])
def test_grammar_accepts_marker_as_special_token(matcher: Matcher, family: str) -> None:
    def terminal(text: str) -> str:  # <repo_name> replaces the family's marker
        return "<[3]>" if text in choose_dialect(family, "").markers else json.dumps(text)

    def special(*calls: tuple[str, str]) -> str:
        text = formatted(family, *calls)
        for marker in choose_dialect(family, "").markers:
            text = text.replace(marker, "<repo_name>")
        return text

    for choice in (ToolChoice(), ToolChoice(mode="required")):
        assert matcher.accepts(family, special(GOOD), terminal=terminal, tool_choice=choice)
        assert not matcher.accepts(family, special(BAD), terminal=terminal, tool_choice=choice)


def test_no_grammar_without_required_call_or_strict_tool() -> None:
    for choice in (ToolChoice(), ToolChoice(mode="none")):
        chat = Chat(messages=(USER,), tools=(Tool(name="g"),), tool_choice=choice)
        assert choose_dialect("hermes", "").grammar(chat, "", json.dumps, None) is None


def test_prepare_gives_callable_tools_to_template_that_renders_tools() -> None:
    dialect = choose_dialect("hermes", "")
    for choice, names in (
        (ToolChoice(), ["f", "g"]),
        (ToolChoice(mode="none"), []),
        (ToolChoice(mode="auto", names=("g",)), ["g"]),
    ):
        chat = dialect.prepare(Chat(messages=(USER,), tools=TOOLS, tool_choice=choice), Traits())
        assert [tool.name for tool in chat.tools] == names
        assert chat.messages == (USER,)


def test_prepare_writes_tools_into_system_message_for_other_templates() -> None:
    dialect = choose_dialect("generic", "")
    alone = dialect.prepare(Chat(messages=(USER,), tools=TOOLS), NO_TOOLS)
    assert [message.role for message in alone.messages] == ["system", "user"]
    paragraph = alone.messages[0].content or ""
    listed = paragraph.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert json.loads(listed[0]) == {
        "type": "function",
        "function": {"name": "f", "description": "Does f.", "parameters": INTEGER},
    }
    assert '<tool_call>\n{"name": "the function"' in paragraph and "answer in words" in paragraph
    with_system = Chat(messages=(Message(role="system", content="Be brief."), USER), tools=TOOLS)
    assert dialect.prepare(with_system, NO_TOOLS).messages[0].content == f"Be brief.\n\n{paragraph}"
    assert dialect.prepare(Chat(messages=(USER,)), NO_TOOLS).messages == (USER,)


def test_prepare_writes_calls_and_results_into_messages_for_other_templates() -> None:
    calls = (ToolCall("1", *GOOD), ToolCall("2", *OTHER))
    results = tuple(Message(role="tool", content=text, tool_call_id=id) for text, id in (("one", "1"), ("two", "2")))
    chat = Chat(messages=(USER, Message(role="assistant", content="See:", tool_calls=calls), *results))
    _, call, result = choose_dialect("generic", "").prepare(chat, NO_TOOLS).messages
    assert call.content == f"See:\n{formatted('generic', GOOD, OTHER)}" and not call.tool_calls
    assert result.role == "user"
    assert result.content == "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>"


def test_prepare_writes_only_what_the_template_does_not_render() -> None:
    call = Message(role="assistant", tool_calls=(ToolCall("1", *GOOD),))
    result = Message(role="tool", content="one", tool_call_id="1")
    chat = Chat(messages=(USER, call, result), tools=TOOLS)
    calls_as_text = choose_dialect("phi", "").prepare(chat, Traits(calls=False))
    assert calls_as_text.tools == TOOLS and calls_as_text.messages[2] == result
    assert calls_as_text.messages[1].content == formatted("phi", GOOD) and not calls_as_text.messages[1].tool_calls
    results_as_text = choose_dialect("phi", "").prepare(chat, Traits(results=False))
    assert results_as_text.messages[:2] == (USER, call)
    assert results_as_text.messages[2] == Message(role="user", content="<tool_response>\none\n</tool_response>")


def test_mistral_shortens_ids_alike_in_call_and_result() -> None:
    call = Message(
        role="assistant", tool_calls=(ToolCall("call_0123456789abcdef", *GOOD), ToolCall("abcDEF123", *OTHER))
    )
    result = Message(role="tool", content="1", tool_call_id="call_0123456789abcdef")
    _, called, answered = choose_dialect("mistral", "").prepare(Chat(messages=(USER, call, result)), Traits()).messages
    first, second = (call.id for call in called.tool_calls)
    assert len(first) == 9 and first.isalnum() and answered.tool_call_id == first
    assert second == "abcDEF123"


def test_reasoning_effort_sets_enable_thinking() -> None:
    template = ChatTemplate("{% if enable_thinking is false %}off{% else %}on{% endif %} {{ reasoning_effort }}", {})
    for effort, rendered in (("none", "off none"), ("high", "on high")):
        assert template.render(Chat(messages=(USER,), reasoning_effort=effort), lambda variables: variables) == rendered
