"""`npu-gateway build` as a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.bundles.bundle import load_bundle
from gateway.cli import make_parser
from gateway.errors import ConfigError
from tests.support.tiny import write_tiny_folder


def _build(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", "build", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)


def test_hugging_face_folder_becomes_a_bundle(tmp_path: Path) -> None:
    done = _build(write_tiny_folder(tmp_path / "source"), tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'out'}: a bundle of 0 MB for cpu")
    assert f'path = "{(tmp_path / "out").as_posix()}"' in done.stdout  # the table to paste
    assert "writing the layers" in done.stderr
    assert load_bundle(tmp_path / "out").config.vocab_size == 384


def test_failure_is_one_line(tmp_path: Path) -> None:
    done = _build(tmp_path / "nothing.gguf", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("npu-gateway: There is no model at nothing.gguf")
    assert "Traceback" not in done.stderr


def test_options_of_the_npu_are_refused_for_the_cpu(tmp_path: Path) -> None:
    arguments = make_parser().parse_args(["build", "x", str(tmp_path / "out"), "--precision", "int4"])
    with pytest.raises(ConfigError, match="--precision: only for the NPU; add `--target qnn`"):
        arguments.run(arguments)
