from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as native

from gateway.errors import BundleError, EngineFailed
from gateway.worker.decoders import onnx
from gateway.worker.decoders.onnx import SessionOptions, open_session
from tests.support.paths import ROOT


def test_each_exception_of_onnxruntime_is_mapped() -> None:
    known = {*onnx.BUNDLE_FAULTS, *onnx.ENGINE_FAULTS}
    thrown = {c for _, c in inspect.getmembers(native, inspect.isclass) if issubclass(c, Exception)}
    assert thrown == known


def test_import_of_onnxruntime_writes_no_telemetry_files(tmp_path: Path) -> None:
    """With telemetry on, the library keeps an identifier and a queue there. It turns telemetry off if it detects a CI,
    so the CI's variables are left out."""
    folders = ("HOME", "USERPROFILE", "LOCALAPPDATA", "APPDATA", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    system = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    subprocess.run(
        [sys.executable, "-c", "import gateway.worker.decoders.onnx"],
        env={**system, "PYTHONPATH": str(ROOT), **dict.fromkeys(folders, str(tmp_path))},
        check=True,
    )
    assert list(tmp_path.iterdir()) == []


def test_session_opens_on_cpu_provider(tiny: Path) -> None:
    session = open_session(tiny / "model.onnx", SessionOptions(threads=1))
    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("content", [None, b"", b"not a graph"], ids=["missing", "empty", "text"])
def test_bad_graph_file_is_bundle_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded") as raised:
        open_session(path, SessionOptions())
    assert str(tmp_path.parent) not in raised.value.message


def test_failed_allocation_is_engine_failed() -> None:
    assert isinstance(onnx.opening_failed(Path("b/model.onnx"), MemoryError()), EngineFailed)
    assert isinstance(onnx.opening_failed(Path("b/model.onnx"), native.RuntimeException("no memory")), EngineFailed)


def test_messages_are_one_short_line() -> None:
    assert onnx.running_failed(RuntimeError("one\n\n  two")).message.endswith("one two")
    assert len(onnx.running_failed(RuntimeError("x" * 5000)).message) < 400


def test_numpy_dtype_of_cache_types() -> None:
    assert onnx.numpy_dtype("tensor(float16)") is np.float16
    with pytest.raises(BundleError, match="bfloat16"):
        onnx.numpy_dtype("tensor(bfloat16)")
