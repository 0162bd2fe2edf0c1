"""`npu-gateway build` as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gateway.bundles.bundle import load_bundle
from tests.support.tiny import write_tiny_folder


def _build(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", "build", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)


def test_hugging_face_folder_becomes_a_bundle(tmp_path: Path) -> None:
    done = _build(write_tiny_folder(tmp_path / "source"), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'out'}: a bundle of 0 MB for cpu")
    assert "writing the layers" in done.stderr
    assert load_bundle(tmp_path / "out").config.vocab_size == 384


def test_failure_is_one_line(tmp_path: Path) -> None:
    done = _build(tmp_path / "nothing.gguf", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("npu-gateway: There is no model at nothing.gguf")
    assert "Traceback" not in done.stderr
