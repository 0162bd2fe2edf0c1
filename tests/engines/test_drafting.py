from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.engines.drafting import PredictionDrafter

TEXT = list(range(100, 160))


def calls_for(answer: list[int], text: list[int], most: int = 64) -> tuple[int, int]:
    """Device calls that an answer takes with drafts from `text`, and how many drafted tokens were wrong."""
    drafter = PredictionDrafter(text)
    calls = wrong = place = 0
    while place < len(answer):
        draft = list(drafter.draft(most))
        assert len(draft) <= most
        right = next((i for i, t in enumerate(draft) if answer[place + i : place + i + 1] != [t]), len(draft))
        calls += 1
        wrong += len(draft) - right
        if draft:
            drafter.learn(len(draft), right)
        for token in answer[place : place + right + 1]:
            drafter.follow(token)
        place += right + 1
    return calls, wrong


def test_an_unchanged_text_takes_few_calls() -> None:
    calls, wrong = calls_for(TEXT, TEXT)
    assert (calls, wrong) == (4, 0)  # drafts of 8, 16, 32 and the rest


def test_an_edit_is_passed() -> None:
    replaced = [*TEXT[:20], 1, *TEXT[21:]]
    inserted = [*TEXT[:20], 1, 2, 3, *TEXT[20:]]
    deleted = [*TEXT[:20], *TEXT[30:]]
    assert calls_for(replaced, TEXT)[0] <= 8
    assert calls_for(inserted, TEXT)[0] <= 10
    assert calls_for(deleted, TEXT)[0] <= 8


def test_a_text_that_has_nothing_to_do_with_the_answer_costs_little() -> None:
    calls, wrong = calls_for(list(range(40)), TEXT)
    assert calls == 40
    assert wrong <= 8


def test_repeated_tokens_need_two_to_find_the_place() -> None:
    text = [5, 1, 5, 2, 5, 3, 5, 4]
    drafter = PredictionDrafter(text)
    for token in (9, 5):
        drafter.follow(token)
    assert not drafter.draft(8)  # 5 alone stands in four places
    drafter.follow(2)
    assert drafter.draft(8) == [5, 3, 5, 4]


@given(st.lists(st.integers(0, 5), max_size=40), st.lists(st.integers(0, 5), max_size=40), st.integers(1, 9))
def test_any_answer_comes_to_an_end(answer: list[int], text: list[int], most: int) -> None:
    calls, _ = calls_for(answer, text, most)
    assert calls <= len(answer)
