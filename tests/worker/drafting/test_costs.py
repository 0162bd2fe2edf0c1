"""What calls cost, in units of one single step."""

from __future__ import annotations

import pytest

from gateway.worker.drafting.costs import CallCosts, Credit
from gateway.worker.frames import PassTimes

PASSES = {1: 1.0, 8: 1.4, 128: 2.6}


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


def test_unmeasured_widths_cost_what_the_passes_of_the_start_say() -> None:
    """16 tokens took 4.9 times as long as one."""
    costs = CallCosts(None, PassTimes(wide_s=0.245, step_s=0.05).id_cost)
    costs.record_step(1, 0.05)
    assert costs.verify_cost(4) == pytest.approx(0.05 * 1.78)
    assert costs.verify_cost(60) == pytest.approx(0.05 * 17.38)


def test_preempted_first_call_of_a_width_counts_for_little() -> None:
    costs = CallCosts(None, 0.25)
    costs.record_step(1, 1.0)
    costs.record_verify(4, 500.0)
    assert costs.verify_cost(4) < 6


def test_passes_that_were_not_measured_give_no_cost() -> None:
    assert PassTimes(0.0, 0.0).id_cost == PassTimes(1.0, 2.0).id_cost == 0.0


def test_gains_of_drafts_pay_for_a_limited_loss() -> None:
    credit = Credit(1.0, 5.0)
    credit.settle(64, 10.0)
    assert credit.steps == 5.0
    credit.settle(1, 8.0)
    credit.stepped(100)
    assert credit.steps == pytest.approx(-1.0)
