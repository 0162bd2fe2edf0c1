"""A build for the NPU is killed at any point: the next one continues with the first piece that is not finished.

tests/support/kill_npu_build.py has the points. The slow run compiles a tiny model for the emulated NPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.qnn.device import NpuDevice
from tests.support.paths import ROOT
from tests.support.processes import environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="each run is a fork")


def run_points(kind: str, folder: Path, count: int) -> dict[str, int]:
    """{"events": points of a whole run, "points": kills, "continued": kills that left finished pieces}"""
    command = [sys.executable, "-m", "tests.support.kill_npu_build", kind, str(folder), "5", str(count)]
    variables = environment(PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    print(found)
    return found


def test_kill_at_every_point_keeps_the_finished_pieces(tmp_path: Path) -> None:
    found = run_points("pieces", tmp_path, 0)
    assert found["points"] == found["events"] > 50 and found["continued"] > 20


@pytest.mark.slow
def test_killed_build_for_the_npu_continues(tmp_path: Path, npu: NpuDevice) -> None:
    found = run_points("real", tmp_path, 40)
    assert found["points"] >= 40 and found["continued"] > 20
