"""Drafts from a prediction, against simulated answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.bundles.kv_cache.common_prefix import common_prefix
from gateway.worker.drafting.prediction import PredictionDrafter, PredictionIndex

TEXT = list(range(100, 160))


def calls_for(answer: list[int], text: list[int], most: int = 64) -> tuple[int, int]:
    """Device calls that an answer takes with drafts from `text`, and how many drafted tokens were wrong."""
    drafter = PredictionDrafter(PredictionIndex(text))
    calls = wrong = position = 0
    while position < len(answer):
        draft = list(drafter.draft(most))
        assert len(draft) <= most
        right = common_prefix(draft, answer[position:])
        calls += 1
        wrong += len(draft) - right
        if draft:
            drafter.record(len(draft), right)
        for token in answer[position : position + right + 1]:
            drafter.follow(token)
        position += right + 1
    return calls, wrong


def test_prediction_equal_to_answer_takes_few_calls() -> None:
    calls, wrong = calls_for(TEXT, TEXT)
    assert (calls, wrong) == (4, 0)  # drafts of 8, 16, 32 and the rest


def test_prediction_is_followed_past_edits() -> None:
    replaced = [*TEXT[:20], 1, *TEXT[21:]]
    inserted = [*TEXT[:20], 1, 2, 3, *TEXT[20:]]
    deleted = [*TEXT[:20], *TEXT[30:]]
    assert calls_for(replaced, TEXT)[0] <= 8
    assert calls_for(inserted, TEXT)[0] <= 10
    assert calls_for(deleted, TEXT)[0] <= 8


def test_unrelated_prediction_drafts_few_tokens() -> None:
    calls, wrong = calls_for(list(range(40)), TEXT)
    assert calls == 40
    assert wrong <= 8


def test_repeated_token_needs_pair_to_find_position() -> None:
    text = [5, 1, 5, 2, 5, 3, 5, 4]
    drafter = PredictionDrafter(PredictionIndex(text))
    for token in (9, 5):
        drafter.follow(token)
    assert not drafter.draft(8)  # 5 is at four positions
    drafter.follow(2)
    assert drafter.draft(8) == [5, 3, 5, 4]


@given(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 5), max_size=40), st.integers(1, 9))
def test_prediction_never_takes_more_calls_than_tokens(answer: list[int], text: list[int], most: int) -> None:
    calls, _ = calls_for(answer, text, most)
    assert calls <= len(answer)
