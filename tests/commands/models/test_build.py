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
    done = _build(write_tiny_folder(tmp_path / "source"), tmp_path / "out", "--precision", "int8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path / 'out'}: a bundle of 0 MB for cpu")
    assert f'path = "{(tmp_path / "out").as_posix()}"' in done.stdout  # the table to paste
    assert "\nint8" in done.stdout
    assert "writing the layers" in done.stderr
    assert load_bundle(tmp_path / "out").config.vocab_size == 384


def test_failure_is_one_line(tmp_path: Path) -> None:
    done = _build(tmp_path / "nothing.gguf", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("npu-gateway: There is no model at nothing.gguf")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "fp16", "--batch", "1"], "--batch, --precision fp16: only for the NPU; add `--target qnn`"),
        (
            ["--precision", "float16", "--target", "qnn"],
            "--precision float16: only for the CPU; the NPU has fp16",
        ),
    ],
    ids=["npu", "cpu"],
)
def test_options_of_the_other_target_are_refused(tmp_path: Path, options: list[str], words: str) -> None:
    arguments = make_parser().parse_args(["build", "x", str(tmp_path / "out"), *options])
    with pytest.raises(ConfigError, match=words):
        arguments.run(arguments)
