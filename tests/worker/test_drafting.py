from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from gateway.worker.drafting import CallCosts, PredictionDrafter, PromptLookupDrafter

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


# -- what has been said before -----------------------------------------------------------------------------------------

PROMPT = random.Random(1).choices(range(1000), k=300)


def like_the_cpu(ids: int) -> float:
    return 1.0 if ids == 1 else 1.8 + 0.13 * ids


def seconds_for(answer: list[int], prompt: list[int], cost: Callable[[int], float] = like_the_cpu) -> float:
    """What an answer takes in single steps, when calls of so many ids cost so much."""
    ids, costs, spent = list(prompt), CallCosts(), 0.0
    drafter = PromptLookupDrafter(ids)
    while len(ids) < len(prompt) + len(answer):
        place = len(ids) - len(prompt)
        draft = drafter.draft(min(63, len(answer) - place - 1), costs, 1)
        right = next((i for i, token in enumerate(draft) if answer[place + i] != token), len(draft))
        spent += cost(1 + len(draft))
        (costs.record_verify if draft else costs.record_step)(1 + len(draft), cost(1 + len(draft)))
        for token in answer[place : place + right + 1]:
            ids.append(token)
            drafter.follow(token)
    return spent


def test_a_quotation_is_several_times_as_fast() -> None:
    assert seconds_for(PROMPT[50:250], PROMPT) < 200 / 4


def test_an_edited_quotation_is_twice_as_fast() -> None:
    answer = PROMPT[50:250]
    for place in (30, 77, 131):
        answer[place : place + 2] = [1001, 1002, 1003]
    assert seconds_for(answer, PROMPT) < len(answer) / 2


def test_a_model_that_goes_round_in_circles_is_followed() -> None:
    assert seconds_for([1, 2, 3] * 60, PROMPT) < 180 / 3


def test_text_that_only_looks_like_what_was_said_costs_no_more_than_a_hundredth() -> None:
    """Pairs come again all the time, and what follows them is chance."""
    chance = random.Random(2)
    answer = [chance.choice((1, 2, 3, 4)) if place % 3 else chance.randrange(1000) for place in range(2000)]
    assert seconds_for(answer, answer[:500][::-1]) <= 2000 * 1.01


def test_a_device_on_which_it_does_not_pay_is_left_alone() -> None:
    assert seconds_for(PROMPT[50:250], PROMPT, cost=lambda ids: 0.1 + 0.9 * ids) <= 200 * 1.01


def test_together_a_guess_must_be_worth_more() -> None:
    costs = CallCosts()
    costs.record_step(1, 1.0)
    costs.record_step(8, 1.2)
    ids = [*PROMPT, PROMPT[0]]
    drafter = PromptLookupDrafter(ids)
    for token in PROMPT[1:8]:
        ids.append(token)
        drafter.follow(token)
    assert drafter.draft(63, costs, 1) and not drafter.draft(63, costs, 8)


def test_a_device_that_is_cheaper_than_usual_is_found_out() -> None:
    """A fixed cost for any width, as a graph of fixed shape has it."""
    assert seconds_for(PROMPT[50:250], PROMPT, cost=lambda ids: 1.0 if ids == 1 else 2.6) < 200 / 6


def test_a_width_that_was_too_expensive_once_is_tried_again() -> None:
    costs = CallCosts()
    costs.record_step(1, 1.0)
    costs.record_verify(8, 100.0)
    for _ in range(600):
        costs.record_step(1, 1.0)
    assert costs.verify_cost(8) < 5


def test_one_slow_call_does_not_spoil_an_estimate() -> None:
    costs = CallCosts()
    for seconds in (1.0, 1.0, 50.0, 1.0):
        costs.record_step(1, seconds)
    assert 0.8 < costs.step_rate(1) <= 1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.lists(st.integers(0, 3), max_size=60))
def test_any_answer_comes_to_an_end_and_never_takes_more_calls(prompt: list[int], answer: list[int]) -> None:
    assert seconds_for(answer, prompt, cost=lambda ids: 1.0) <= len(answer)
