"""The markup parser: calls, reasoning and content of every family."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.base import Delta, Parser
from gateway.dialects.choose import DIALECT_NAMES, choose_dialect
from gateway.generation import Chat, Message, ReasoningDelta, TextDelta, Tool, ToolCallDelta, ToolChoice

TOOLS = (Tool(name="f"), Tool(name="get_weather"))
FAMILIES = [name for name in DIALECT_NAMES if name != "plain"]
ARGUMENTS = '{"city": "Paris", "days": [1, {"a": "}{]["}], "say": "\\"</tool_call>\\" [TOOL_CALLS] ;"}'


def chat(**choice: Any) -> Chat:
    return Chat(messages=(Message(role="user", content="?"),), tools=TOOLS, tool_choice=ToolChoice(**choice))


def parser(family: str, rendered: str = "", **choice: Any) -> Parser:
    return choose_dialect(family, "").parser(chat(**choice), rendered, 0)


def read(reader: Parser, *pieces: str) -> tuple[str, str, list[tuple[str, str]]]:
    """Return the content, the reasoning and the calls (name, arguments)."""
    deltas: list[Delta] = [delta for piece in pieces for delta in reader.push(piece)]
    deltas += reader.finish()
    calls: dict[int, tuple[str, str]] = {}
    for delta in deltas:
        match delta:
            case ToolCallDelta(id=str(id), name=str(name), index=index):
                assert id and index == len(calls) and not delta.arguments
                calls[index] = (name, "")
            case ToolCallDelta(index=index, arguments=arguments):
                assert delta.id is None and delta.name is None and arguments and index == len(calls) - 1
                calls[index] = (calls[index][0], calls[index][1] + arguments)
            case TextDelta(text) | ReasoningDelta(text):
                assert text
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    reasoning = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
    return text, reasoning, list(calls.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_family_parses_the_calls_that_it_formats(family: str) -> None:
    dialect = choose_dialect(family, "")
    calls = [("f", "{}"), ("get_weather", ARGUMENTS), ("f", '{"a": -1.5e3}')]
    formatted = dialect.format_calls(calls)  # type: ignore[attr-defined]
    assert read(parser(family), formatted) == ("", "", calls)
    assert read(parser(family), *formatted) == ("", "", calls)
    assert read(parser(family), "\n", formatted, "\n") == ("", "", calls)


@pytest.mark.parametrize("name", ["files.read", "mcp:files/read"])
@pytest.mark.parametrize("family", FAMILIES)
def test_family_parses_the_names_of_mcp_servers(family: str, name: str) -> None:
    dialect = choose_dialect(family, "")
    question = Chat(messages=(Message(role="user", content="?"),), tools=(Tool(name=name),))
    reader = dialect.parser(question, "", 0)
    formatted = dialect.format_calls([(name, "{}")])  # type: ignore[attr-defined]
    assert read(reader, *formatted) == ("", "", [(name, "{}")])


WITH_MARKERS = [family for family in FAMILIES if family != "llama"]


@pytest.mark.parametrize("family", WITH_MARKERS)
def test_text_around_calls_is_content(family: str) -> None:
    formatted = choose_dialect(family, "").format_calls([("f", "{}")])  # type: ignore[attr-defined]
    assert read(parser(family), f"Let me see. {formatted}") == ("Let me see. ", "", [("f", "{}")])
    assert read(parser(family), f"{formatted}\nDone.") == ("Done.", "", [("f", "{}")])


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", '<tool_call>{"name":"f","arguments":{}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f"}</tool_call>'),
        ("hermes", '<tool_call>\n{"arguments": {}, "name": "f"}\n</tool_call>'),
        ("hermes", '<tool_call>{"type": "function", "function": {"name": "f", "arguments": {}}}</tool_call>'),
        ("hermes", '<tool_call>{"type": "function", "name": "f", "parameters": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}'),
        ("hermes", '<tool_call>[{"name": "f", "arguments": {}}]</tool_call>'),
        ("llama", '<|python_tag|>{"name": "f", "parameters": {}}'),
        ("llama", '  {"name": "f", "arguments": {}}  '),
        ("llama", '[{"name": "f", "parameters": {}}]'),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}]'),
        ("mistral", "[TOOL_CALLS]f{}"),
        ("mistral", "[TOOL_CALLS]f[ARGS]{}"),
        ("mistral-args", "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}"),
        ("phi", '<|tool_call|>[{"type": "function", "function": {"name": "f", "arguments": {}}}]<|/tool_call|>'),
    ],
)
def test_family_accepts_call_spelling(family: str, text: str) -> None:
    assert read(parser(family), text) == ("", "", [("f", "{}")])
    assert read(parser(family), *text) == ("", "", [("f", "{}")])


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", "<tool_call>"),
        ("hermes", "<tool_call>\nnot JSON\n</tool_call>"),
        ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": 3}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arg'),
        ("hermes", '<tool_call>{"city": "Paris"}</tool_call>'),
        ("hermes", "a < b, <tool, </tool_call> and {} []"),
        ("hermes", '{"name": "f", "arguments": {}}'),
        ("llama", '{"answer": {"name": "f"}}'),
        ("llama", 'See: {"name": "f", "parameters": {}}'),
        ("llama", "[1, 2, 3]"),
        ("llama", '<|python_tag|>print("x")'),
        ("mistral", "[TOOL_CALLS] f and so on"),
        ("mistral", "[TOOL_CALLS]unknown{}"),
        ("phi", "<|tool_call|>[]<|/tool_call|>"),
        ("qwen", "What does <think> mean?"),
        ("qwen", " \n "),
    ],
)
def test_text_that_is_not_a_call_is_complete_content(family: str, text: str) -> None:
    assert read(parser(family), text) == (text, "", [])
    assert read(parser(family), *text) == (text, "", [])


def test_call_is_found_behind_invalid_call() -> None:
    text = '<tool_call>{"no": 1}</tool_call> <tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert read(parser("hermes"), text) == ('<tool_call>{"no": 1}</tool_call> ', "", [("f", "{}")])


@pytest.mark.parametrize("broken", ['{"name": "f", "arguments": {"a": 1é', '{"name": "f", "arguments": {}, é'])
def test_call_behind_incomplete_call_has_next_index(broken: str) -> None:
    """Clients join the pieces of a call by its index. With the same index, the arguments of both would be joined."""
    _, _, calls = read(
        parser("mistral"), f'[TOOL_CALLS] [{broken} [TOOL_CALLS] [{{"name": "f", "arguments": {{"b": 2}}}}]'
    )
    assert [name for name, _ in calls] == ["f", "f"] and calls[1] == ("f", '{"b": 2}')


def test_arguments_are_delivered_as_they_arrive() -> None:
    reader = parser("hermes")
    assert list(reader.push('<tool_call>{"name": "f", "arguments": ')) == []
    first, second = reader.push('{"a": "b')
    assert isinstance(first, ToolCallDelta) and (first.name, first.arguments) == ("f", "")
    assert second == ToolCallDelta(index=0, arguments='{"a": "b')
    assert list(reader.push("c")) == [ToolCallDelta(index=0, arguments="c")]
    assert list(reader.push('"}}</tool_call>')) == [ToolCallDelta(index=0, arguments='"}')]


def test_cut_call_keeps_its_arguments() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "Par'
    assert read(parser("hermes"), text) == ("", "", [("f", '{"a": "Par')])


@pytest.mark.parametrize("family", FAMILIES)
def test_required_call_cut_before_its_name_is_dropped(family: str) -> None:
    formatted = choose_dialect(family, "").format_calls([("get_weather", ARGUMENTS)])  # type: ignore[attr-defined]
    for length in range(len(formatted)):
        text, _, calls = read(parser(family, mode="required"), formatted[:length])
        assert text == ""
        assert calls == [] or (calls[0][0] == "get_weather" and ARGUMENTS.startswith(calls[0][1]))


def test_tool_choice_none_makes_calls_content() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert read(parser("hermes", mode="none"), text) == (text, "", [])


def test_call_of_disallowed_tool_is_content() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert read(parser("hermes", names=("get_weather",)), text) == (text, "", [])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_second_call_ends_the_answer_without_parallel_calls(family: str, mode: str) -> None:
    text = choose_dialect(family, "").format_calls([("f", "{}"), ("get_weather", "{}")])  # type: ignore[attr-defined]
    reader = parser(family, parallel=False, mode=mode)
    assert read(reader, *text) == ("", "", [("f", "{}")]) and reader.is_over


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_repeated_call_ends_the_answer(family: str, mode: str) -> None:
    """The default model repeats its call until `max_tokens`, also two calls in turn."""
    calls = [("f", '{"a": 1, "b": [2]}'), ("f", "{}"), ("get_weather", "{}")]
    text = choose_dialect(family, "").format_calls([*calls, ("f", '{"b":[2],"a":1}'), ("f", '{"a": 3}')])  # type: ignore
    for pieces in ([text], text, f"\n{text}"):
        reader = parser(family, mode=mode)
        assert read(reader, *pieces) == ("", "", calls) and reader.is_over


def test_text_behind_required_calls_ends_the_answer() -> None:
    reader = parser("hermes", mode="required")
    list(reader.push('<tool_call>{"name": "f", "arguments": {}}</tool_call>\n'))
    assert not reader.is_over
    assert list(reader.push("The")) == [] and reader.is_over
    assert list(reader.push('<tool_call>{"name": "f", "arguments": {"a": 1}}')) == list(reader.finish()) == []


@pytest.mark.parametrize("length", [10, 14])
def test_cut_call_is_dropped_only_if_it_can_be_a_repetition(length: int) -> None:
    first, second = '{"city": "Paris"}', '{"city": "Rome"}'
    text = choose_dialect("hermes", "").format_calls([("f", first), ("f", second)])  # type: ignore[attr-defined]
    cut = text[: text.index(second) + length]
    expected = [("f", first)] if length == 10 else [("f", first), ("f", second[:length])]
    assert read(parser("hermes"), *cut) == ("", "", expected)


def test_call_ids_are_unique_and_have_the_length_of_the_family() -> None:
    for family, length in (("hermes", 29), ("mistral", 9)):
        formatted = choose_dialect(family, "").format_calls([("f", f'{{"a": {i}}}') for i in range(3)])  # type: ignore
        ids = [d.id for d in parser(family).push(formatted) if isinstance(d, ToolCallDelta) and d.id]
        assert len(set(ids)) == 3 and {len(id) for id in ids} == {length}


@pytest.mark.parametrize("family", FAMILIES)
def test_reasoning_is_separate_if_model_or_prompt_opens_it(family: str) -> None:
    assert read(parser(family), "<think>\nHm.\n</think>\n\nParis.") == ("Paris.", "Hm.\n", [])
    assert read(parser(family, "<|im_start|>assistant\n<think>\n"), "Hm.</think>Paris.") == ("Paris.", "Hm.", [])
    assert read(parser(family, "<think>\n\n</think>\n\n"), "Paris.") == ("Paris.", "", [])
    assert read(parser(family), "<think>\n\n</think>\n\nParis.") == ("Paris.", "", [])


@pytest.mark.parametrize("family", FAMILIES)
def test_call_is_parsed_behind_reasoning(family: str) -> None:
    formatted = choose_dialect(family, "").format_calls([("f", "{}")])  # type: ignore[attr-defined]
    assert read(parser(family), f"<think>I need f.</think>\n\n{formatted}") == ("", "I need f.", [("f", "{}")])


def test_cut_reasoning_stays_reasoning() -> None:
    assert read(parser("qwen"), "<think>So far</thi") == ("", "So far</thi", [])
    reader = parser("qwen")
    list(reader.push("<think>So"))
    assert reader.is_reasoning
    list(reader.push("</think>"))
    assert not reader.is_reasoning


FRAGMENTS = st.sampled_from(
    [
        *("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|tool_call|>"),
        *("<|/tool_call|>", "<|python_tag|>", "f", "get_weather", "{", "}", "[", "]", '"', ",", ";", ":", " ", "\n"),
        *('{"name": "f", "arguments": {', '{"name": "f", "parameters": {}}', '"name": "f"', '"arguments": ', "{}"),
        *("[THINK]", "[/THINK]", "<response>", "</response>", "```json", "```", "functools", "<function=", "f>{}"),
        *("Here is my thought process:", "Here is my response:", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>"),
        *("f\n```json\n{}\n```<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "</function>", "<response>a</response>"),
        *('"a": 1', "\\", "<", "tool", "é", "words", '{"name": "f", "arguments": {"a": "b"}}', "null", "]]", "}}"),
    ]
)
TEXTS = st.lists(FRAGMENTS, max_size=14).map("".join)


@given(st.sampled_from(FAMILIES), TEXTS, st.data())
def test_deltas_are_the_same_for_any_cut(family: str, text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = read(parser(family), text)
    assert read(parser(family), *pieces) == whole
    assert read(parser(family), *text) == whole


@given(st.sampled_from(FAMILIES), TEXTS)
def test_text_without_calls_and_reasoning_is_complete_content(family: str, text: str) -> None:
    content, reasoning, calls = read(parser(family), text)
    if not calls and not any(mark in text for mark in ("<think>", "[THINK]", "Here is my thought process:")):
        assert (content, reasoning) == (text, "")
    for name, _ in calls:
        assert name in ("f", "get_weather")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)


@given(st.sampled_from(FAMILIES), st.lists(OBJECTS, min_size=1, max_size=3), st.booleans())
def test_any_json_arguments_are_unchanged(family: str, objects: list[dict[str, Any]], ascii: bool) -> None:
    objects = list({json.dumps(value, sort_keys=True): value for value in objects}.values())  # no call twice
    calls = [("f", json.dumps(value, ensure_ascii=ascii)) for value in objects]
    formatted = choose_dialect(family, "").format_calls(calls)  # type: ignore[attr-defined]
    assert read(parser(family), *formatted) == ("", "", calls)
