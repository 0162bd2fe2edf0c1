"""ChoiceText: stop strings, markup, and the log-probabilities of each text delta."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.base import Delta
from gateway.dialects.choose import choose_dialect
from gateway.dialects.plain import PlainParser
from gateway.engines.choice import ChoiceText
from gateway.generation import (
    Chat,
    ChoiceFinished,
    Event,
    FinishReason,
    ReasoningDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)


class CapitalsParser:
    """A parser with every kind of delta: capitals are reasoning, digits are tool calls."""

    is_reasoning = False
    is_over = False

    def push(self, text: str) -> Iterable[Delta]:
        for character in text:
            if character.isupper():
                yield ReasoningDelta(character)
            elif character.isdigit():
                yield ToolCallDelta(index=int(character), id="c", name="f")
            else:
                yield TextDelta(character)

    def finish(self) -> Iterable[Delta]:
        return (TextDelta("."),)


def logprob(token: str) -> TokenLogprob:
    return TokenLogprob(token, tuple(token.encode()), -1.0)


def run(tokens: list[str], stops: list[str] = [], reason: FinishReason = "length") -> list[Event]:  # noqa: B006
    choice, events = ChoiceText(0, stops, PlainParser()), []
    for token in tokens:
        events += choice.push(token, logprob(token))
        if choice.stopped is not None:
            break
    return [*events, *choice.finish(reason)]


def entries(events: list[Event]) -> list[str]:
    return [entry.token for event in events if isinstance(event, TextDelta) for entry in event.logprobs]


def test_text_delta_has_logprobs_of_its_tokens() -> None:
    events = run(["a", "b"])
    assert events == [
        TextDelta("a", 0, (logprob("a"),)),
        TextDelta("b", 0, (logprob("b"),)),
        ChoiceFinished("length"),
    ]


def test_held_back_text_keeps_its_logprobs() -> None:
    events = run(["x", "E", "N", "V"], ["END"])
    assert events[0] == TextDelta("x", 0, (logprob("x"),))
    assert events[1] == TextDelta("ENV", 0, (logprob("E"), logprob("N"), logprob("V")))


def test_logprobs_of_tokens_after_stop_string_are_dropped() -> None:
    events = run(["x ", "yE", "ND", "z"], ["END"])
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "x y"
    assert entries(events) == ["x ", "yE"]
    assert events[-1] == ChoiceFinished("stop", stop="END")


def test_end_of_the_model_stops_like_an_end_token() -> None:
    for stops, expected in (((), None), (("END",), "END")):
        choice = ChoiceText(0, stops, PlainParser(), ends=("END",))
        events = [*choice.push("x EN"), *choice.push("D y")]
        assert choice.stopped == "END"
        assert [*events, *choice.finish("length")] == [TextDelta("x "), ChoiceFinished("stop", stop=expected)]


def test_logprob_of_partial_character_waits_for_the_rest() -> None:
    choice = ChoiceText(0, (), PlainParser())
    first = choice.push("a", logprob("a"))
    assert choice.push("", logprob("\u00c3"), whole=False) == []
    second = choice.push("é", logprob("\u00a9"))
    assert (entries(first), entries(second)) == (["a"], ["\u00c3", "\u00a9"])


def test_logprob_of_cut_character_comes_at_the_end() -> None:
    choice = ChoiceText(0, (), PlainParser())
    choice.push("", logprob("\u00c3"), whole=False)
    assert choice.finish("length") == [TextDelta("", 0, (logprob("\u00c3"),)), ChoiceFinished("length")]


def test_stop_string_decided_at_the_end() -> None:
    events = run(["a file"], ["file of", "file"])
    assert events == [TextDelta("a ", 0), TextDelta("", 0, (logprob("a file"),)), ChoiceFinished("stop", stop="file")]


@pytest.mark.parametrize(("reason", "expected"), [("stop", "tool_calls"), ("length", "length")])
def test_tool_call_changes_reason_unless_cut(reason: FinishReason, expected: FinishReason) -> None:
    choice = ChoiceText(0, (), CapitalsParser())
    events = choice.push("aB1", logprob("aB1"))
    assert [type(event) for event in events] == [TextDelta, ReasoningDelta, ToolCallDelta]
    assert choice.finish(reason) == [TextDelta("."), ChoiceFinished(expected)]


def test_reasoning_tokens_include_markers() -> None:
    chat = Chat(messages=(), reasoning_effort="low")
    choice = ChoiceText(0, (), choose_dialect("qwen", "").parser(chat, "", 0))
    for token in ("<think>", "\n", "Hm", ".", "</think>", "\n\n", "Paris", "."):
        choice.push(token)
    assert choice.reasoning_tokens == 5


@given(st.lists(st.text(alphabet="ab", min_size=1, max_size=3)), st.lists(st.text("ab", min_size=1, max_size=3)))
def test_choice_has_one_end_and_each_logprob_once(tokens: list[str], stops: list[str]) -> None:
    events = run(tokens, stops)
    assert sum(isinstance(event, ChoiceFinished) for event in events) == 1
    got = entries(events)
    assert got == tokens[: len(got)]
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert "".join(tokens).startswith(text)
    assert len("".join(got)) >= len(text)
    if events[-1] == ChoiceFinished("length"):
        assert (text, got) == ("".join(tokens), tokens)
