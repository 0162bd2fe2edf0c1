"""Drafters against simulated answers. Costs are simulated too, in units of one single step."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.common_prefix import common_prefix
from gateway.worker.drafting import CallCosts, PredictionDrafter, PredictionIndex, PromptLookupDrafter

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


# -- prompt lookup -----------------------------------------------------------------------------------------------------

PROMPT = random.Random(1).choices(range(1000), k=300)


def cpu_cost(ids: int) -> float:
    return 1.0 if ids == 1 else 1.8 + 0.13 * ids


def seconds_for(
    answer: list[int],
    prompt: list[int],
    cost: Callable[[int], float] = cpu_cost,
    passes: dict[int, float] | None = None,
) -> float:
    """The cost of an answer, in single steps, if a call of n ids costs `cost(n)`."""
    ids, costs, spent = list(prompt), CallCosts(passes), 0.0
    drafter = PromptLookupDrafter(ids)
    while len(ids) < len(prompt) + len(answer):
        position = len(ids) - len(prompt)
        draft = drafter.draft(min(63, len(answer) - position - 1), costs, 1)
        right = common_prefix(draft, answer[position:])
        spent += cost(1 + len(draft))
        (costs.record_verify if draft else costs.record_step)(1 + len(draft), cost(1 + len(draft)))
        for token in answer[position : position + right + 1]:
            ids.append(token)
            drafter.follow(token)
    return spent


def test_lookup_of_quotation_takes_quarter_of_steps() -> None:
    assert seconds_for(PROMPT[50:250], PROMPT) < 200 / 4


def test_lookup_of_edited_quotation_takes_half_of_steps() -> None:
    answer = PROMPT[50:250]
    for edit in (30, 77, 131):
        answer[edit : edit + 2] = [1001, 1002, 1003]
    assert seconds_for(answer, PROMPT) < len(answer) / 2


def test_lookup_follows_repeating_answer() -> None:
    assert seconds_for([1, 2, 3] * 60, PROMPT) < 180 / 3


def test_lookup_of_random_continuations_costs_at_most_one_percent() -> None:
    """Pairs of tokens repeat often, but what follows them is random."""
    rng = random.Random(2)
    answer = [rng.choice((1, 2, 3, 4)) if position % 3 else rng.randrange(1000) for position in range(2000)]
    assert seconds_for(answer, answer[:500][::-1]) <= 2000 * 1.01


def test_lookup_stops_on_device_without_gain() -> None:
    assert seconds_for(PROMPT[50:250], PROMPT, cost=lambda ids: 0.1 + 0.9 * ids) <= 200 * 1.01


def test_lookup_drafts_only_alone_when_batched_steps_are_cheap() -> None:
    costs = CallCosts()
    costs.record_step(1, 1.0)
    costs.record_step(8, 1.2)
    ids = [*PROMPT, PROMPT[0]]
    drafter = PromptLookupDrafter(ids)
    for token in PROMPT[1:8]:
        ids.append(token)
        drafter.follow(token)
    assert drafter.draft(63, costs, 1) and not drafter.draft(63, costs, 8)


def test_lookup_uses_wide_drafts_on_device_with_fixed_call_cost() -> None:
    """A graph of fixed shape costs the same for any width."""
    assert seconds_for(PROMPT[50:250], PROMPT, cost=lambda ids: 1.0 if ids == 1 else 2.6) < 200 / 6


def test_verify_cost_drifts_back_to_usual() -> None:
    costs = CallCosts()
    costs.record_step(1, 1.0)
    costs.record_verify(8, 100.0)
    for _ in range(600):
        costs.record_step(1, 1.0)
    assert costs.verify_cost(8) < 5


def test_step_rate_ignores_one_slow_call() -> None:
    costs = CallCosts()
    for seconds in (1.0, 1.0, 50.0, 1.0):
        costs.record_step(1, seconds)
    assert 0.8 < costs.step_rate(1) <= 1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.lists(st.integers(0, 3), max_size=60))
def test_lookup_never_takes_more_calls_than_tokens(prompt: list[int], answer: list[int]) -> None:
    assert seconds_for(answer, prompt, cost=lambda ids: 1.0) <= len(answer)


# -- graphs of fixed shape ---------------------------------------------------------------------------------------------

PASSES = {1: 1.0, 8: 1.4, 128: 2.6}


def pass_cost(ids: int) -> float:
    return next(cost for width, cost in PASSES.items() if width >= ids)


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (7, 7), (8, 7), (13, 7), (14, 14), (127, 127)])
def test_right_draft_is_cut_to_the_cheaper_width(size: int, expected: int) -> None:
    """15 ids in a call of 2.6 steps are more tokens per second than 8 ids in one of 1.4; 14 are not."""
    costs = CallCosts(PASSES)
    assert costs.cut(size) == expected  # before the first step
    costs.record_step(1, 0.05)
    assert costs.cut(size) == expected


def test_measured_width_without_gain_is_not_preferred() -> None:
    costs = CallCosts(PASSES)
    costs.record_step(1, 1.0)
    costs.record_verify(8, 2.6)
    costs.record_verify(9, 2.6)
    assert costs.cut(8) == 8


def test_draft_for_a_graph_of_any_width_is_not_cut() -> None:
    assert CallCosts().cut(9) == 9


def test_lookup_uses_narrow_graph_while_matches_are_short() -> None:
    """The answer leaves the prompt after every eighth token: a full window alone would not pay."""
    answer = [token for start in range(0, 240, 8) for token in (*PROMPT[start : start + 7], 2000 + start)]
    full_only = seconds_for(answer, PROMPT, lambda ids: 1.0 if ids == 1 else 2.6, {1: 1.0, 128: 2.6})
    with_narrow = seconds_for(answer, PROMPT, pass_cost, PASSES)
    assert with_narrow < 0.8 * full_only


def test_lookup_drafts_the_last_tokens_of_an_answer() -> None:
    """Fewer than fill the narrow graph."""
    costs = CallCosts(PASSES)
    costs.record_step(1, 1.0)
    ids = [*PROMPT, *PROMPT[:8]]
    drafter = PromptLookupDrafter(ids)
    drafter.follow(ids[-1])
    assert drafter.draft(3, costs, 1) == PROMPT[8:11]
