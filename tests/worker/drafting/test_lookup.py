"""Prompt lookup against simulated answers. Costs are simulated too, in units of one single step."""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from gateway.bundles.kv_cache.common_prefix import common_prefix
from gateway.worker.drafting.costs import CallCosts
from gateway.worker.drafting.lookup import PromptLookupDrafter

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
    ids, costs, spent = list(prompt), CallCosts(passes, (cost(16) - 1) / 15), 0.0  # as measured at the start
    drafter = PromptLookupDrafter(ids)
    while len(ids) < len(prompt) + len(answer):
        position = len(ids) - len(prompt)
        rate = costs.step_rate(1)
        draft = drafter.draft(min(63, len(answer) - position - 1), costs, rate) if rate else ()
        right = common_prefix(draft, answer[position:])
        spent += cost(1 + len(draft))
        (costs.record_verify if draft else costs.record_step)(1 + len(draft), cost(1 + len(draft)))
        if draft:
            drafter.credit.settle(right + 1, costs.verify_cost(1 + len(draft)) * rate)
        else:
            drafter.credit.stepped()
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


def large_cost(ids: int) -> float:
    """Of a billion weights, measured on one thread."""
    return 1 + 0.26 * (ids - 1)


def test_lookup_at_a_billion_weights() -> None:
    """A call of 64 tokens costs 17 steps there, so a quotation is at most 3.7 times as fast."""
    rng = random.Random(2)
    answers = [[rng.choice((1, 2, 3, 4)) if position % 3 else rng.randrange(1000) for position in range(80)]]
    answers.append([rng.randrange(6) for _ in range(80)])
    for answer in answers:
        assert seconds_for(answer, answer[:40][::-1], large_cost) <= 80 * 1.02
    assert seconds_for(PROMPT[50:250], PROMPT, large_cost) < 200 / 3


def test_lookup_stops_after_a_loss_until_steps_have_paid_for_it() -> None:
    """The pair of tokens occurred before, and something else follows each time."""
    ids, costs = [1, 2, 3], CallCosts(None, 0.26)
    costs.record_step(1, 1.0)
    drafter = PromptLookupDrafter(ids)
    drafter.credit.settle(1, 2.0)
    for token in (1, 2):
        ids.append(token)
        drafter.follow(token)
    assert not drafter.draft(8, costs, 1.0)
    drafter.credit.stepped(60)
    assert drafter.draft(8, costs, 0.6)


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
    assert drafter.draft(63, costs, costs.step_rate(1)) and not drafter.draft(63, costs, costs.step_rate(8))


def test_lookup_uses_wide_drafts_on_device_with_fixed_call_cost() -> None:
    """A graph of fixed shape costs the same for any width."""
    assert seconds_for(PROMPT[50:250], PROMPT, cost=lambda ids: 1.0 if ids == 1 else 2.6) < 200 / 6


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.lists(st.integers(0, 3), max_size=60))
def test_lookup_never_takes_more_calls_than_tokens(prompt: list[int], answer: list[int]) -> None:
    assert seconds_for(answer, prompt, cost=lambda ids: 1.0) <= len(answer)


# -- graphs of fixed shape ---------------------------------------------------------------------------------------------

PASSES = {1: 1.0, 8: 1.4, 128: 2.6}


def pass_cost(ids: int) -> float:
    return next(cost for width, cost in PASSES.items() if width >= ids)


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
    assert drafter.draft(3, costs, 1.0) == PROMPT[8:11]
