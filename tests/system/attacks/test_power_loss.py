"""A program that writes a bundle is killed at any point: the old or the new state is left, and the next run succeeds.

tests/support/kill_points.py has the points. A slow run takes 100 random points of each task.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gateway.qnn.device import NpuDevice
from tests.support.paths import ROOT
from tests.support.processes import environment
from tests.support.tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="each run is a fork")


def run_points(task: str, folder: Path, count: int, **variables: str) -> dict[str, int]:
    """{"events": points of a whole run, "points": killed runs, "old", "new": what they left}"""
    command = [sys.executable, "-m", "tests.support.kill_points", task, str(folder), "12", str(count)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(PYTHONDONTWRITEBYTECODE="1", **variables),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    print(found)
    return found


@pytest.mark.parametrize("task", ["build", "copy"])
def test_kill_at_some_points_leaves_old_or_new(tmp_path: Path, task: str) -> None:
    found = run_points(task, tmp_path, 6)
    assert found["points"] >= 8 and found["old"] and found["new"]


@pytest.mark.slow
@pytest.mark.parametrize("task", ["build", "copy"])
def test_kill_at_every_point_leaves_old_or_new(tmp_path: Path, task: str) -> None:
    found = run_points(task, tmp_path, 1000)
    assert found["points"] == found["events"] >= 50


@pytest.mark.slow
def test_kill_at_100_points_of_a_build_for_the_npu(tmp_path: Path, npu: NpuDevice) -> None:
    found = run_points("build_npu", tmp_path, 100)
    assert found["points"] == 100 and found["old"] and found["new"]


def write_wheels(folder: Path) -> dict[str, str]:
    """Two versions of a wheel with a model, and the settings with which pip finds only these."""
    folder.mkdir()
    for seed, version in enumerate(("1.0", "2.0")):
        model = write_tiny_gguf(folder / f"{'first' if version == '1.0' else 'second'}", seed=seed)
        info = f"tiny_model-{version}.dist-info"
        with zipfile.ZipFile(folder / f"tiny_model-{version}-py3-none-any.whl", "w") as wheel:
            wheel.write(model, f"tiny_model/{model.name}.gguf")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: tiny_model\nVersion: {version}\n")
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}


@pytest.mark.parametrize("count", [0, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_during_download_and_build_leaves_nothing_or_all(tmp_path: Path, count: int) -> None:
    (tmp_path / "temporary").mkdir()
    variables = write_wheels(tmp_path / "wheels") | {"TMPDIR": str(tmp_path / "temporary")}
    found = run_points("fetch", tmp_path, count, **variables)
    assert found["points"] >= min(count, 60) and found["points"] > 1
    assert list((tmp_path / "temporary").iterdir()) == []  # pip's files too are in the folder that is cleaned
