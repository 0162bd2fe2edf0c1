"""A short run of the stress test with random faults. docs/reliability.md has the figures of a long run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.storm.run import ANSWERED, WORKER_ENDED, run_storm


@pytest.mark.parametrize(
    ("events", "restarts", "processes"),
    [
        pytest.param(100, 15, False, id="virtual time"),
        pytest.param(20, 2, True, id="processes"),
        pytest.param(10_000, 1000, False, marks=pytest.mark.slow, id="virtual time, long"),
        pytest.param(1_000, 100, True, marks=pytest.mark.slow, id="processes, long"),
    ],
)
def test_every_request_ends_once_and_nothing_is_left(tiny: Path, events: int, restarts: int, processes: bool) -> None:
    storm = run_storm(tiny, events, restarts, processes=processes)
    assert storm.events >= events and storm.restarts >= restarts
    assert storm.counts[ANSWERED] > events / 2 and storm.counts[WORKER_ENDED] > 0
    assert storm.memory_mb[-1] - storm.memory_mb[0] < 32  # finds a leak; docs/reliability.md has the exact figures
