"""DeliveredCalls: when a call goes to the client."""

from __future__ import annotations

import pytest

from gateway.dialects.delivered import DeliveredCalls


def call(calls: DeliveredCalls, *pieces: str, name: str = "f") -> list[str]:
    """The arguments that are delivered after the name, after each piece, and after the end."""
    calls.begin(name)
    delivered = []
    for piece in ("", *pieces):
        calls.add(piece, ends_member=piece.endswith(","))
        delivered.append("".join(f"{delta.name or ''}{delta.arguments}" for delta in calls.take()))
    calls.end()
    return [*delivered, "".join(f"{delta.name or ''}{delta.arguments}" for delta in calls.take())]


def test_first_call_of_a_function_is_not_held_back() -> None:
    calls = DeliveredCalls(0)
    assert call(calls, '{"a":', "1}") == ["f", '{"a":', "1}", ""]
    assert call(calls, '{"a":', "1}", name="g") == ["g", '{"a":', "1}", ""]
    assert calls.count == 2 and not calls.is_over


def test_call_is_held_back_until_a_member_differs() -> None:
    calls = DeliveredCalls(0)
    call(calls, '{"path": "a", "text": "b"}')
    assert call(calls, '{"path": "a",', ' "text": "c', '"}') == ["", "", "", "", 'f{"path": "a", "text": "c"}']
    assert call(calls, '{"path": "c",', ' "text": "b', '"}') == ["", 'f{"path": "c",', ' "text": "b', '"}', ""]
    assert call(calls, '{"extra": 1,', ' "path": "a"}') == ["", 'f{"extra": 1,', ' "path": "a"}', ""]


@pytest.mark.parametrize("again", ['{"a": 1, "b": "é"}', '{"a":1,"b":"\\u00e9"}', '{"b": "é",  "a": 1}'])
def test_equal_arguments_are_a_repetition_however_they_are_written(again: str) -> None:
    calls = DeliveredCalls(0)
    call(calls, '{"a": 1, "b": "é"}')
    assert call(calls, *again.partition(",")) == ["", "", "", "", ""]
    assert calls.is_over and calls.count == 1
    assert call(calls, "{}") == ["", "", ""]  # nothing is delivered any more


@pytest.mark.parametrize("other", ['{"a": true}', '{"a": 1.0}', '{"a": "1"}', '{"A": 1}', '{"a": 1', "{}"])
def test_other_arguments_are_no_repetition(other: str) -> None:
    calls = DeliveredCalls(0)
    call(calls, '{"a": 1}')
    assert call(calls, other)[-1] == f"f{other}" and not calls.is_over


def test_call_above_the_limit_ends_the_answer() -> None:
    calls = DeliveredCalls(0, limit=1)
    call(calls, "{}")
    assert not calls.is_over
    assert call(calls, '{"a": 1}') == ["", "", ""] and calls.is_over
