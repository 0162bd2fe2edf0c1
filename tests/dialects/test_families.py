"""Each model family on a template of its behaviour: what goes into the prompt, and what is read of the answer.

The table in docs/compatibility.md has one row for each family. Each of its cells is computed and checked here.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.dialects.choose import choose_dialect
from gateway.generation import Chat, Message, ReasoningDelta, TextDelta, Tool, ToolCall, ToolCallDelta, ToolChoice
from gateway.text.templates import ChatTemplate
from tests.support.family_templates import FAMILIES

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = Tool(name="get_weather", description="Weather of a city.")
OTHER = Tool(name="get_time")
USER = Message(role="user", content="qUser")
CALLS = (ToolCall("call_1", "get_weather", '{"city": "Paris"}'), ToolCall("call_2", "get_time", '{"zone": "CET"}'))
RESULTS = tuple(Message(role="tool", content=f"qResult{n}", tool_call_id=f"call_{n}") for n in (1, 2))
TEMPLATES = {family: ChatTemplate(source, SPECIALS) for family, source in FAMILIES.items()}

HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
HERMES_2 = '\n<tool_call>\n{"name": "get_time", "arguments": {"zone": "CET"}}\n</tool_call>'
ARRAY = '[{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "get_time", "arguments": {"zone": "CET"}}]'
NATIVE = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
    '{"city": "Paris"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n'
    '{"zone": "CET"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)
#: What models of the family write for the two calls.
WRITTEN: dict[str, list[str]] = {
    "Llama 3.1, 3.2": [
        '{"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": "get_time", "parameters": {"zone": "CET"}}',
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}\n'
        '<|python_tag|>{"type": "function", "name": "get_time", "parameters": {"zone": "CET"}}',
        '<function=get_weather>{"city": "Paris"}</function>\n<function=get_time>{"zone": "CET"}</function>',
    ],
    "Qwen2.5": [HERMES + HERMES_2],
    "Qwen3": [HERMES + HERMES_2, f"<think>\nqThought</think>\n\n{HERMES}{HERMES_2}"],
    "Phi-3.5": [HERMES + HERMES_2],
    "Phi-4-mini": [f"<|tool_call|>{ARRAY}<|/tool_call|>", f"functools{ARRAY}"],
    "Mistral v3": [f"[TOOL_CALLS] {ARRAY}", f"[THINK]qThought[/THINK][TOOL_CALLS] {ARRAY}"],
    "Mistral v7": [
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get_time[ARGS]{"zone": "CET"}',
        '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris"}[TOOL_CALLS]get_time{"zone": "CET"}',
    ],
    "Hermes": [HERMES.replace("\n", "") + " " + HERMES_2],
    "DeepSeek-R1-Distill": [f"qThought</think>\n\n{NATIVE}", f"qThought\n</think>{HERMES}{HERMES_2}"],
    "Gemma 3": [HERMES + HERMES_2, f"```json\n{ARRAY}\n```", f"```tool_call\n{ARRAY}\n```"],
    "Granite 3": [f"<|tool_call|>{ARRAY}", f"<tool_call>{ARRAY}"],
    "OLMo 2": [HERMES + HERMES_2],
    "SmolLM3": [HERMES + HERMES_2, f"<think>qThought</think>{HERMES}{HERMES_2}"],
}


def prompt(family: str, *messages: Message, **chat: Any) -> str:
    conversation = Chat(messages=messages, **chat)
    dialect, template = choose_dialect("", FAMILIES[family]), TEMPLATES[family]
    return template.render(dialect.prepare(conversation, template.traits))


def in_order(text: str, *words: str) -> bool:
    at = [text.find(word) for word in words]
    return -1 not in at and at == sorted(at)


def parse(family: str, pieces: list[str], rendered: str, **chat: Any) -> tuple[str, str, list[tuple[str, str]]]:
    """The content, the reasoning, and the calls as (name, arguments)."""
    parser = choose_dialect("", FAMILIES[family]).parser(Chat(**{"messages": (USER,), **chat}), rendered, 0)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + list(parser.finish())
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            call = calls.setdefault(delta.index, ["", ""])
            call[0] += delta.name or ""
            call[1] += delta.arguments
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    reasoning = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
    return text, reasoning, [(name, arguments) for name, arguments in calls.values()]


# --- the cells of the table: each checks the behaviour and returns its words


def system_role(family: str) -> str:
    system, late = (Message(role="system", content=word) for word in ("qSystem", "qLate"))
    assert in_order(prompt(family, system, USER), "qSystem", "qUser")
    answered = Message(role="assistant", content="qAnswer")
    text = prompt(family, system, USER, answered, late, Message(role="user", content="qNext"))
    ordered = ("qUser", "qAnswer", "qLate", "qNext")
    assert in_order(text, *ordered) and "qSystem" in text
    return "anywhere" if TEMPLATES[family].traits.late_system else "first; later ones as text of the user"


def tools(family: str) -> str:
    assert in_order(prompt(family, USER, tools=(TOOL, OTHER)), "get_weather", "Weather of a city.", "get_time")
    assert "get_weather" not in prompt(family, USER, tools=(TOOL,), tool_choice=ToolChoice(mode="none"))
    return "by the template" if TEMPLATES[family].traits.tools else "in the system text"


def two_calls(family: str) -> str:
    turn = Message(role="assistant", tool_calls=CALLS)
    text = prompt(family, USER, turn, RESULTS[1], RESULTS[0], tools=(TOOL, OTHER))
    calls = text[text.rindex("qUser") :] if text.count("get_weather") > 1 else text
    assert in_order(calls, "get_weather", "get_time") and in_order(calls, '"city": "Paris"', '"zone": "CET"')
    traits = TEMPLATES[family].traits
    if not traits.calls or not traits.tools:
        return "as text"
    return "in one turn" if traits.many_calls else "in two turns"


def results(family: str) -> str:
    turn = Message(role="assistant", tool_calls=CALLS)
    text = prompt(family, USER, turn, *RESULTS, Message(role="user", content="qNext"), tools=(TOOL, OTHER))
    assert in_order(text, "qResult1", "qResult2", "qNext")
    traits = TEMPLATES[family].traits
    return "by the template" if traits.results and traits.tools else "as text of the user"


def reasoning_sent_back(family: str) -> str:
    turn = Message(role="assistant", tool_calls=CALLS[:1], reasoning="qThought")
    running = prompt(family, USER, turn, RESULTS[0], tools=(TOOL,))
    answer = Message(role="assistant", content="qAnswer", reasoning="qThought")
    earlier = prompt(family, USER, answer, Message(role="user", content="qNext"))
    assert "qAnswer" in earlier and "</think>" not in earlier.replace("<think>\n\n</think>", "")
    if "qThought" in earlier:
        return "kept"
    return "kept in the running turn" if "qThought" in running else "left out"


def thinking_switch(family: str) -> str:
    off, on = (prompt(family, USER, reasoning_effort=effort) for effort in ("none", "high"))
    assert off == prompt(family, USER, template_kwargs={"enable_thinking": False, "thinking": False})
    return "yes" if off != on else "no"


def continuation(family: str) -> str:
    text = prompt(family, USER, Message(role="assistant", content="The capital is"))
    assert text.endswith("The capital is") and in_order(text, "qUser", "The capital is")
    assert parse(family, [" Paris."], text, messages=(USER, Message(role="assistant", content="The capital is"))) == (
        " Paris.",
        "",
        [],
    )
    return "yes"


def answers(family: str) -> str:
    """Every text in pieces of every size, behind the prompt of a request with tools."""
    rendered = prompt(family, USER, tools=(TOOL, OTHER))
    for written in WRITTEN[family]:
        opened = "</think>" in written and "<think>" not in written
        whole = parse(family, [written], rendered if opened else "", tools=(TOOL, OTHER))
        assert whole[2] == [(call.name, call.arguments) for call in CALLS], written
        assert whole[0] == "" and whole[1].strip() == ("qThought" if "qThought" in written else "")
        for size in range(1, len(written)):
            pieces = [written[at : at + size] for at in range(0, len(written), size)]
            assert parse(family, pieces, rendered if opened else "", tools=(TOOL, OTHER)) == whole
    return f"`{choose_dialect('', FAMILIES[family]).name}`"


COLUMNS = {
    "system messages": system_role,
    "tools": tools,
    "two calls in one turn": two_calls,
    "results": results,
    "reasoning sent back": reasoning_sent_back,
    "thinking can be switched": thinking_switch,
    "continues an answer": continuation,
    "calls are read as": answers,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_row_of_the_table_is_what_the_family_does(family: str) -> None:
    cells = [family, *(column(family) for column in COLUMNS.values())]
    assert f"| {' | '.join(cells)} |" in DOCUMENT.read_text(encoding="utf-8").splitlines()


def test_table_has_every_column_and_no_other_row() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    head = lines.index(f"| family | {' | '.join(COLUMNS)} |")
    rows = list(itertools.takewhile(lambda line: line.startswith("|"), lines[head + 2 :]))
    assert len(rows) == len(FAMILIES)


@pytest.mark.parametrize(
    ("family", "written", "expected"),
    [
        ("Granite 3", "<think>qThought</think><response>Paris.</response>", ("Paris.", "qThought")),
        ("Granite 3", "<think>qThought</think>\n<response>a <response> b</response>\n", ("a <response> b", "qThought")),
        ("Granite 3", "Here is my thought process: qT\nHere is my response: Paris.", ("Paris.", "qT\n")),
        ("Granite 3", "Here is my answer <response>", ("Here is my answer <response>", "")),
        ("Mistral v7", "[THINK]qThought[/THINK]Paris.", ("Paris.", "qThought")),
        ("Gemma 3", '```json\n{"a": 1}\n```', ('```json\n{"a": 1}\n```', "")),
        ("Phi-4-mini", "import functools\nfunctools.cache", ("import functools\nfunctools.cache", "")),
        ("DeepSeek-R1-Distill", "a ```json {} <｜tool▁sep｜>", ("a ```json {} <｜tool▁sep｜>", "")),
        ("Llama 3.1, 3.2", "<function=unknown>{}</function>", ("<function=unknown>{}</function>", "")),
    ],
)
def test_reasoning_and_text_of_a_family_in_pieces_of_every_size(
    family: str, written: str, expected: tuple[str, str]
) -> None:
    for size in range(1, len(written) + 1):
        pieces = [written[at : at + size] for at in range(0, len(written), size)]
        assert parse(family, pieces, "", tools=(TOOL, OTHER)) == (*expected, [])


@pytest.mark.parametrize(
    ("begun", "written", "expected"),
    [
        ("<think>\nSo", " far.</think>Paris.", ("Paris.", " far.")),
        ("<think>a</think>The", " capital", (" capital", "")),
        ("Sure: ", "<think>", ("<think>", "")),
        ('{"name": ', '"x"}', ('"x"}', "")),
        ("JSON: ", '{"name": "get_weather", "parameters": {}}', ('{"name": "get_weather", "parameters": {}}', "")),
    ],
)
def test_begun_answer_is_continued_where_it_was(begun: str, written: str, expected: tuple[str, str]) -> None:
    begins = Message(role="assistant", content=begun)
    for family in ("Qwen3", "Llama 3.1, 3.2"):
        rendered = prompt(family, USER, begins)
        found = parse(family, list(written), rendered, messages=(USER, begins), tools=(TOOL,))
        assert found[:2] == (expected[0], expected[1].lstrip() if expected[1] else "") and not found[2]


def test_greeting_of_the_assistant_is_not_made_the_users() -> None:
    """Llama's template takes the first message for the user's if there are tools."""
    greeting = Message(role="assistant", content="qHello")
    text = prompt("Llama 3.1, 3.2", greeting, USER, tools=(TOOL,))
    head = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
    assert text.count(head.format("assistant", "qHello")) == text.count(head.format("user", "qUser")) == 1
    assert in_order(prompt("Qwen3", greeting, USER, tools=(TOOL,)), "assistant\nqHello", "user\nqUser")


def test_thinking_of_qwen_is_switched_by_each_field() -> None:
    off = re.escape("<think>\n\n</think>\n\n") + "$"
    assert re.search(off, prompt("Qwen3", USER, reasoning_effort="none"))
    assert re.search(off, prompt("Qwen3", USER, template_kwargs={"enable_thinking": False}))
    assert not re.search(off, prompt("Qwen3", USER, reasoning_effort="low"))
    assert not re.search(off, prompt("Qwen3", USER, reasoning_effort="none", template_kwargs={"enable_thinking": True}))
