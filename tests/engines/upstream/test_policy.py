"""choose: weighted least load, prefix affinity, spill, ties without bias."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from gateway.engines.upstream.policy import MISS_COST, MOST_MISSED, Candidate, Choice, choose


def loads(*values: int) -> list[Candidate]:
    return [Candidate(value) for value in values]


def test_single_target_is_the_only_one() -> None:
    assert choose(loads(9), [0], 3) == Choice(0, "only")


def test_least_loaded_target_wins_without_known_blocks() -> None:
    assert choose(loads(3, 1, 2), [0, 0, 0], 7) == Choice(1, "least-loaded")


def test_equal_blocks_leave_the_choice_to_the_load() -> None:
    assert choose(loads(3, 1, 2), [5, 5, 5], 7) == Choice(1, "least-loaded")


def test_weights_divide_the_load() -> None:
    """Requests that stay are spread in proportion to the weights."""
    weights, counts = (1.0, 2.0, 5.0), [0, 0, 0]
    for tie in range(81):
        candidates = [Candidate(count, weight) for count, weight in zip(counts, weights, strict=True)]
        counts[choose(candidates, [0, 0, 0], tie).index] += 1
    assert [round(count, -1) for count in counts] == [10, 20, 50]


def test_conversation_goes_to_the_target_that_has_it() -> None:
    assert choose(loads(1, 0, 0), [8, 0, 2], 0) == Choice(0, "affinity")


@pytest.mark.parametrize("blocks", [1, 2, 3, MOST_MISSED, 100_000])
@pytest.mark.parametrize("other", [0, 1, 9, 99])
def test_conversation_spills_when_the_load_outweighs_its_blocks(blocks: int, other: int) -> None:
    allowed = int((other + 1) * (1 + MISS_COST * min(blocks, MOST_MISSED))) - 1
    assert choose(loads(allowed, other), [blocks, 0], 0) == Choice(0, "affinity")
    assert choose(loads(allowed + 1, other), [blocks, 0], 0) == Choice(1, "spill")


def test_idle_targets_are_equal_whatever_their_weight() -> None:
    idle = [Candidate(0, 1.0), Candidate(0, 7.0), Candidate(0, 0.3)]
    assert {choose(idle, [0, 0, 0], tie).index for tie in range(20)} == {0, 1, 2}


def test_only_ratios_of_weights_count() -> None:
    for load in range(20):
        weak, strong = ([Candidate(load, scale), Candidate(3, 2 * scale)] for scale in (0.5, 16.0))
        assert choose(weak, [5, 0], 0) == choose(strong, [5, 0], 0)


def test_shared_start_does_not_gather_conversations_on_one_target() -> None:
    """Every conversation begins with the same system prompt, which at first one target has."""
    matches, counts = [3, 0, 0, 0], [0, 0, 0, 0]
    for tie in range(40):
        index = choose(loads(*counts), matches, tie).index
        counts[index] += 1
        matches[index] = 3
    assert counts == [10, 10, 10, 10]


def test_ties_are_spread_without_bias() -> None:
    ties = random.Random(1)
    counts = Counter(choose(loads(2, 0, 0, 0, 5), [0] * 5, ties.getrandbits(32)).index for _ in range(9000))
    assert set(counts) == {1, 2, 3}
    assert all(2800 < count < 3200 for count in counts.values())


@pytest.mark.parametrize("targets", [2, 3, 4])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_counter_spreads_ties_also_if_only_every_nth_request_has_one(targets: int, step: int) -> None:
    counts = Counter(choose(loads(*[0] * targets), [0] * targets, step * i).index for i in range(1200))
    assert all(abs(counts[target] - 1200 / targets) < 0.1 * 1200 / targets for target in range(targets))


def test_lists_of_different_length_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="zip"):
        choose(loads(0, 0), [0], 0)
