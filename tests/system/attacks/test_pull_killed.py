"""A pull is killed at any point, while connections are cut: no model or the complete one, and the next pull continues.

tests/support/kill_pull.py has the points. A slow run takes 100 random points of each kind of source.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.processes import environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="each run is a fork")


def run_points(kind: str, folder: Path, seed: int, count: int) -> dict[str, int]:
    """{"events": points of a whole run, "points": kills, "absent", "installed", "configured", "continued": kills with
    that result}"""
    command = [sys.executable, "-m", "tests.support.kill_pull", kind, str(folder), str(seed), str(count)]
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment(**variables), capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    print(found)
    return found


@pytest.mark.parametrize("kind", ["zip", "hub"])
def test_killed_pull_continues(tmp_path: Path, kind: str) -> None:
    found = run_points(kind, tmp_path, 3, 8)
    assert found["points"] == 8 and found["events"] > 50 and found["continued"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "hub", "gguf"])
def test_pull_killed_100_times_continues(tmp_path: Path, kind: str) -> None:
    found = run_points(kind, tmp_path, 4, 100)
    assert found["points"] == 100 and found["absent"] and found["installed"] and found["continued"] >= 20
