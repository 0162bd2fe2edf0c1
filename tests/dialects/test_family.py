"""What models are told of tools, and the grammars that hold them to a choice: compiled by the real compiler."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.dialects.base import Terminal
from gateway.dialects.choose import choose_dialect
from gateway.generation import Chat, Grammar, Message, Tool, ToolCall, ToolChoice
from gateway.text.templates import ChatTemplate
from gateway.text.tokens import TextTokenizer
from gateway.worker.grammar.constraint import GrammarCompiler

FAMILIES = ("hermes", "llama", "mistral", "mistral-args", "phi")
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
KNOWING = "{% for tool in tools %}{{ tool }}{% endfor %}"


class Judge:
    """Whether a model could write a text under a grammar."""

    def __init__(self, tokenizer: Path) -> None:
        self._tokens = TextTokenizer.load(tokenizer)
        self._compiler = GrammarCompiler(tokenizer, self._tokens.vocab_size, [2])

    def terminal(self, text: str) -> str:
        index = self._tokens.special_id(text)
        return json.dumps(text) if index is None else f"<[{index}]>"

    def close(self) -> None:
        self._compiler.close()

    def takes(
        self,
        family: str,
        text: str,
        *,
        terminal: Terminal | None = None,
        rendered: str = "",
        answer: Grammar | None = None,
        **chat: Any,
    ) -> bool:
        asked = Chat(**{"messages": (USER,), "tools": TOOLS, **chat})
        grammar = choose_dialect(family, "").grammar(asked, rendered, terminal or self.terminal, answer)
        assert grammar is not None
        matcher = self._compiler.compile(grammar)._matcher.deep_copy()
        ids = self._tokens.encode(text, begin=False)
        return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.fixture(scope="module")
def judge(smollm2: Path) -> Iterator[Judge]:
    judge = Judge(smollm2 / "tokenizer.json")
    yield judge
    judge.close()


def written(family: str, *calls: tuple[str, str]) -> str:
    return choose_dialect(family, "").write(calls)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
def test_required_is_calls_that_validate_and_nothing_else(judge: Judge, family: str) -> None:
    required = ToolChoice(mode="required")
    assert judge.takes(family, written(family, GOOD), tool_choice=required)
    assert judge.takes(family, written(family, GOOD, OTHER, GOOD), tool_choice=required)
    for text in ("", "Hello", written(family, BAD), written(family, GOOD, BAD), written(family, ("g", '{"b": 1}'))):
        assert not judge.takes(family, text, tool_choice=required)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_named_function_is_called_once(judge: Judge, family: str) -> None:
    named = ToolChoice(mode="required", names=("f",))
    assert judge.takes(family, written(family, GOOD), tool_choice=named)
    for calls in ((OTHER,), (GOOD, GOOD), (GOOD, OTHER)):
        assert not judge.takes(family, written(family, *calls), tool_choice=named)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_two_calls_unless_parallel(judge: Judge, family: str) -> None:
    single = ToolChoice(mode="required", parallel=False)
    assert judge.takes(family, written(family, OTHER), tool_choice=single)
    assert not judge.takes(family, written(family, OTHER, GOOD), tool_choice=single)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_strict_tool_words_are_free_and_calls_are_not(judge: Judge, family: str) -> None:
    for text in ("", "Hello, {you} <there>", written(family, GOOD), written(family, ("g", '{"any": [1]}'))):
        assert judge.takes(family, text)
    assert not judge.takes(family, written(family, BAD))
    if family != "llama":
        assert judge.takes(family, f"Let me see. {written(family, GOOD)} Done.")
        assert not judge.takes(family, f"Let me see. {written(family, BAD)}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_demanded_call_waits_for_the_end_of_reasoning(judge: Judge, family: str) -> None:
    fields: Any = {"rendered": "<think>\n", "tool_choice": ToolChoice(mode="required")}
    assert judge.takes(family, f"Hm, {{f}}?\n</think>{written(family, GOOD)}", **fields)
    assert not judge.takes(family, written(family, GOOD), **fields)


ANSWERS = (
    (Grammar(kind="json_object"), '{"any": 1}'),
    (Grammar(kind="json_schema", source='{"type": "array", "items": {"type": "integer"}}'), "[1, 2]"),
    (Grammar(kind="regex", source=r"a/b\.c(\n|/)"), "a/b.c/"),
)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("answer", "text"), ANSWERS)
def test_an_answer_of_a_format_may_be_a_call_instead(judge: Judge, family: str, answer: Grammar, text: str) -> None:
    for right in (text, written(family, ("g", '{"any": [1]}')), written(family, GOOD)):
        assert judge.takes(family, right, answer=answer)
        assert judge.takes(family, f"Hm.</think>{right}", answer=answer, rendered="<think>")
    for wrong in ("words", written(family, BAD), f"{text} and words"):
        is_object = (family, answer.kind) == ("llama", "json_object")  # a bare call is one as well, right or wrong
        assert judge.takes(family, wrong, answer=answer) == (is_object and wrong == written(family, BAD))
    assert judge.takes(family, f"Hm.</think>{text}", answer=answer, rendered="<think>", tools=())
    assert not judge.takes(family, text, answer=answer, rendered="<think>", tools=())


def test_a_format_stays_as_it_is_without_tools_and_reasoning() -> None:
    for answer, _ in ANSWERS:
        assert choose_dialect("hermes", "").grammar(Chat(messages=(USER,)), "", json.dumps, answer) is answer


def test_a_demanded_call_goes_before_a_format(judge: Judge) -> None:
    required = ToolChoice(mode="required")
    assert judge.takes("hermes", written("hermes", GOOD), answer=ANSWERS[0][0], tool_choice=required)
    assert not judge.takes("hermes", "{}", answer=ANSWERS[0][0], tool_choice=required)


@pytest.mark.parametrize("family", ["mistral", "mistral-args", "phi"])
def test_a_marker_may_be_a_special_token(judge: Judge, family: str) -> None:
    def terminal(text: str) -> str:  # <repo_name> stands for the family's marker
        return "<[3]>" if text in choose_dialect(family, "").markers else json.dumps(text)

    def special(*calls: tuple[str, str]) -> str:
        text = written(family, *calls)
        for marker in choose_dialect(family, "").markers:
            text = text.replace(marker, "<repo_name>")
        return text

    for choice in (ToolChoice(), ToolChoice(mode="required")):
        assert judge.takes(family, special(GOOD), terminal=terminal, tool_choice=choice)
        assert not judge.takes(family, special(BAD), terminal=terminal, tool_choice=choice)


def test_without_a_demand_or_a_strict_tool_the_model_writes_freely() -> None:
    for choice in (ToolChoice(), ToolChoice(mode="none")):
        chat = Chat(messages=(USER,), tools=(Tool(name="g"),), tool_choice=choice)
        assert choose_dialect("hermes", "").grammar(chat, "", json.dumps, None) is None


def test_a_template_that_knows_tools_gets_those_that_may_be_called() -> None:
    dialect = choose_dialect("hermes", "")
    for choice, names in (
        (ToolChoice(), ["f", "g"]),
        (ToolChoice(mode="none"), []),
        (ToolChoice(mode="auto", names=("g",)), ["g"]),
    ):
        chat = dialect.prepare(Chat(messages=(USER,), tools=TOOLS, tool_choice=choice), KNOWING)
        assert [tool.name for tool in chat.tools] == names
        assert chat.messages == (USER,)


def test_a_template_that_knows_none_is_told_in_the_system_message() -> None:
    dialect = choose_dialect("generic", "")
    alone = dialect.prepare(Chat(messages=(USER,), tools=TOOLS), "{{ messages }}")
    assert [message.role for message in alone.messages] == ["system", "user"]
    told = alone.messages[0].content or ""
    listed = told.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert json.loads(listed[0]) == {
        "type": "function",
        "function": {"name": "f", "description": "Does f.", "parameters": INTEGER},
    }
    assert '<tool_call>\n{"name": "the function"' in told and "answer in words" in told
    ruled = Chat(messages=(Message(role="system", content="Be brief."), USER), tools=TOOLS)
    assert dialect.prepare(ruled, "").messages[0].content == f"Be brief.\n\n{told}"
    assert dialect.prepare(Chat(messages=(USER,)), "").messages == (USER,)


def test_calls_and_results_are_written_out_for_such_a_template() -> None:
    calls = (ToolCall("1", *GOOD), ToolCall("2", *OTHER))
    results = tuple(Message(role="tool", content=text, tool_call_id=id) for text, id in (("one", "1"), ("two", "2")))
    chat = Chat(messages=(USER, Message(role="assistant", content="See:", tool_calls=calls), *results))
    _, made, told = choose_dialect("generic", "").prepare(chat, "").messages
    assert made.content == f"See:\n{written('generic', GOOD, OTHER)}" and not made.tool_calls
    assert told.role == "user"
    assert told.content == "<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>"


def test_mistral_gets_ids_of_nine_characters_the_same_in_call_and_result() -> None:
    call = Message(
        role="assistant", tool_calls=(ToolCall("call_0123456789abcdef", *GOOD), ToolCall("abcDEF123", *OTHER))
    )
    result = Message(role="tool", content="1", tool_call_id="call_0123456789abcdef")
    _, called, told = choose_dialect("mistral", "").prepare(Chat(messages=(USER, call, result)), KNOWING).messages
    first, second = (call.id for call in called.tool_calls)
    assert len(first) == 9 and first.isalnum() and told.tool_call_id == first
    assert second == "abcDEF123"


def test_reasoning_effort_is_the_templates_switch() -> None:
    template = ChatTemplate("{% if enable_thinking is false %}off{% else %}on{% endif %} {{ reasoning_effort }}", {})
    for effort, rendered in (("none", "off none"), ("high", "on high")):
        assert template.render(Chat(messages=(USER,), reasoning_effort=effort), lambda variables: variables) == rendered
