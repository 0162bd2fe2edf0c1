"""A short storm of faults; docs/reliability.md has the figures of a long one. See storm.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.storm import run_storm


@pytest.mark.parametrize(
    ("events", "processes", "ends"),
    [
        (300, False, 50),
        (40, True, 2),
        pytest.param(10_000, False, 1000, marks=pytest.mark.slow),
        pytest.param(1_000, True, 100, marks=pytest.mark.slow),
    ],
)
def test_every_request_has_one_ending_and_nothing_is_left(tiny: Path, events: int, processes: bool, ends: int) -> None:
    storm = run_storm(tiny, events, processes=processes)
    assert storm.events >= events and storm.restarts >= ends
    assert storm.counts["answered"] > events / 2 and storm.counts["its worker ended"] > 0
    assert storm.memory_mb[-1] - storm.memory_mb[0] < 32  # the figures are in the docs; this is for a leak
