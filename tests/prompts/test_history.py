"""Which messages are left out of a conversation that does not fit: random histories with calls and results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.generation import Message, Role, ToolCall
from gateway.prompts.history import MAX_CHARACTERS_PER_TOKEN, Histories

LONG = 10**6  # tokens of a context whose limit of characters does not matter


def message(role: Role, text: str, *ids: str, result_of: str | None = None) -> Message:
    return Message(
        role=role, content=text, tool_calls=tuple(ToolCall(id, "f", "{}") for id in ids), tool_call_id=result_of
    )


def words(messages: Sequence[Message]) -> int:
    return sum(len((each.content or "").split()) for each in messages)


def call_of(messages: Sequence[Message], index: int) -> int | None:
    """The nearest call before the result at `index`."""
    ids = [{call.id for call in each.tool_calls} for each in messages[:index]]
    return next((before for before in reversed(range(index)) if messages[index].tool_call_id in ids[before]), None)


texts = st.integers(1, 9).map(lambda count: "word " * count)


@st.composite
def rounds(draw: st.DrawFn) -> list[Message]:
    """One to three calls of an assistant with their results. Clients use the same ids again in each turn."""
    ids = draw(st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3, unique=True))
    results = [message("tool", draw(texts), result_of=id) for id in draw(st.permutations(ids))]
    return [message("assistant", draw(texts), *ids), *results]


@st.composite
def turns(draw: st.DrawFn) -> list[Message]:
    turn = [message("user", draw(texts)) for _ in range(draw(st.integers(1, 2)))]
    for made in draw(st.lists(rounds(), max_size=3)):
        turn += made
        if draw(st.integers(0, 9)) == 0:
            turn.insert(len(turn) - 1, message("user", draw(texts)))  # between a call and its result
    if draw(st.booleans()):
        turn.append(message("assistant", draw(texts)))
    if draw(st.integers(0, 9)) == 0:
        turn.insert(draw(st.integers(0, len(turn))), message("system", draw(texts)))
    return turn


@st.composite
def conversations(draw: st.DrawFn) -> list[Message]:
    start = [message("system", draw(texts))] if draw(st.booleans()) else []
    greeting = [message("assistant", draw(texts))] if draw(st.integers(0, 4)) == 0 else []
    return [*start, *greeting, *(each for turn in draw(st.lists(turns(), min_size=1, max_size=7)) for each in turn)]


def indices(messages: Sequence[Message], kept: Sequence[Message]) -> list[int]:
    """Of the kept messages. Messages are compared as objects."""
    positions = {id(each): index for index, each in enumerate(messages)}
    return [positions[id(each)] for each in kept]


def newest_users(messages: Sequence[Message]) -> list[int]:
    spoken = [index for index, each in enumerate(messages) if each.role != "system"]
    while messages[spoken[-1]].role != "user":
        spoken.pop()
    found = []
    while spoken and messages[spoken[-1]].role == "user":
        found.append(spoken.pop())
    return sorted(found)


def is_valid(messages: Sequence[Message], kept: list[int]) -> bool:
    """The rules of the policy, for a part of a conversation."""
    first, last = next(index for index in kept if messages[index].role != "system"), newest_users(messages)
    before = [index for index in range(first) if messages[index].role != "system"]
    is_turn = messages[first].role == "user" and (not before or messages[before[-1]].role != "user")
    results = [index for index in kept if messages[index].role == "tool"]
    has_calls = all((call := call_of(messages, index)) is None or call in kept for index in results)
    return is_turn and has_calls and set(last) <= set(kept)


def possible(messages: Sequence[Message]) -> list[list[int]]:
    """Every valid part that has all system text, the newest messages of the user and a tail, longest first."""
    last, found = newest_users(messages), []
    calls = [index for index in range(last[-1] + 1, len(messages)) if messages[index].role == "assistant"]
    for start in range(1, len(messages)):
        if start > last[0] and start not in calls[1:]:
            continue
        fixed = [index for index in range(start) if messages[index].role == "system" or index in last]
        kept = sorted({*fixed, *range(start, len(messages))})
        if len(kept) < len(messages) and is_valid(messages, kept):
            found.append(kept)
    unique = {tuple(kept): kept for kept in found}
    return sorted(unique.values(), key=len, reverse=True)


@settings(max_examples=60, deadline=None)
@given(conversations(), st.data())
def test_kept_history_is_valid_and_the_longest_that_fits(messages: list[Message], data: st.DataObject) -> None:
    limit = data.draw(st.integers(0, words(messages)), "limit")
    histories, calls = Histories(messages, step=1), []

    def fits(number: int) -> bool:
        calls.append(number)
        return words(histories.messages(number)) <= limit

    number = histories.longest(fits, LONG)
    kept = indices(messages, histories.messages(number))
    assert histories.dropped(number) == len(messages) - len(kept)
    everything = [list(range(len(messages))), *possible(messages)]
    expected = next((each for each in everything if words([messages[i] for i in each]) <= limit), everything[-1])
    assert kept == expected
    assert not number or is_valid(messages, kept)
    assert len(calls) <= 2 + math.log2(len(histories))


@settings(max_examples=60, deadline=None)
@given(conversations(), st.integers(1, 200), st.integers(0, 300))
def test_steps_give_valid_histories_that_fit_if_one_does(messages: list[Message], step: int, limit: int) -> None:
    histories, fine = Histories(messages, step), Histories(messages, step=1)
    number = histories.longest(lambda each: words(histories.messages(each)) <= limit, LONG)
    kept = histories.messages(number)
    assert not number or is_valid(messages, indices(messages, kept))
    shortest = fine.messages(len(fine) - 1)
    assert words(kept) <= limit or (words(shortest) > limit and kept == shortest)


def dialog(count: int) -> list[Message]:
    """A conversation with turns of 20 words (100 characters)."""
    turns = [(message("user", "user " * 10), message("assistant", "test " * 10)) for _ in range(count)]
    return [message("system", "Be brief."), *(each for turn in turns for each in turn), message("user", "Now?")]


def test_next_turns_leave_out_the_same_messages() -> None:
    """The prefix cache can use what they share: in steps of 400 characters, four turns go at once."""
    dropped = []
    for count in range(1, 21):
        histories = Histories(dialog(count), step=400)
        number = histories.longest(lambda each, all=histories: words(all.messages(each)) <= 200, LONG)  # type: ignore[misc]
        dropped.append(histories.dropped(number))
    assert dropped == [0] * 9 + [8] * 4 + [16] * 4 + [24] * 3


@pytest.mark.parametrize("messages", [[message("system", "Be brief.")], [message("assistant", "Hello")], []])
def test_history_without_a_user_has_one_form(messages: list[Message]) -> None:
    histories = Histories(messages, step=1)
    assert len(histories) == 1 and histories.longest(lambda number: False, LONG) == 0
    assert histories.messages(0) == tuple(messages)


def test_calls_of_the_newest_turn_go_with_their_results() -> None:
    work = [
        each for n in range(4) for each in (message("assistant", "", f"{n}"), message("tool", "x", result_of=f"{n}"))
    ]
    messages = [message("user", "Old"), message("assistant", "Yes"), message("user", "Do it"), *work]
    histories = Histories(messages, step=1)
    forms = [indices(messages, histories.messages(number)) for number in range(len(histories))]
    tail = [[2, *range(start, 11)] for start in (3, 5, 7, 9)]
    assert forms == [list(range(11)), *tail]


def test_history_with_too_many_characters_is_not_rendered() -> None:
    messages = [message("user" if index % 2 == 0 else "assistant", "x" * 1000) for index in range(101)]
    histories, tried = Histories(messages, step=1), []

    def fits(number: int) -> bool:
        tried.append(number)
        return True

    number = histories.longest(fits, context_length=500)
    kept = sum(len(each.content or "") for each in histories.messages(number))
    assert kept == 7000 <= 500 * MAX_CHARACTERS_PER_TOKEN and 0 not in tried and len(tried) <= 6
