"""The child process that makes a piece of a bundle for the NPU, next to other programs that build the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.builder.npu import background
from gateway.bundles.stamp import BuildRequest, unfinished_folder
from gateway.qnn.device import NpuDevice
from tests.support.tiny import write_tiny_folder


def test_bundle_that_another_program_finished_during_the_wait_is_taken(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models_dir, out = tmp_path / "models", tmp_path / "models" / "tiny-npu"
    shutil.copytree(tiny, models_dir / "tiny")
    write_tiny_folder(models_dir / "weights")

    @contextmanager
    def held(folder: Path) -> Iterator[None]:
        shutil.copytree(tiny, folder)  # by the program that had the lock
        yield

    monkeypatch.setattr(background, "exclusive", held)
    monkeypatch.setattr(background, "required_npu", lambda: NpuDevice(kind="npu", name="X1E", soc=60))
    monkeypatch.setattr(background, "_lower_priority", lambda: None)  # of this process
    request = BuildRequest(
        path="tiny", source="weights", provider="auto", activations="int8", models_dir=str(models_dir)
    )
    assert background._advance(request).folder == str(out)
    assert not unfinished_folder(out).exists()
