"""A machine without the package onnxruntime-qnn, as an x86 machine where the emulator was not requested."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.errors import BundleError
from gateway.qnn import binary_info, provider, system_api
from gateway.qnn.binary_info import read_binary
from gateway.qnn.device import runtime_version
from gateway.worker.genie import library

ADVICE = r"package onnxruntime-qnn, 245 MB\)\. In a clone, start with `python scripts/serve\.py --provider qnn`"


@pytest.fixture(autouse=True)
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions without their caches, which stay: the library can be registered once in a process."""
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    monkeypatch.setattr(provider, "_ep_device", provider._ep_device.__wrapped__)
    monkeypatch.setattr(binary_info, "system_functions", system_api.system_functions.__wrapped__)
    monkeypatch.setattr(library, "_load_library", library._load_library.__wrapped__)


def test_there_is_no_npu_and_no_emulator() -> None:
    assert provider.find_npu() is None and provider.emulated_npu() is None and runtime_version() == ""


def test_request_for_the_npu_names_the_installation() -> None:
    with pytest.raises(BundleError, match=ADVICE):
        provider.any_npu()


def test_context_binary_names_the_installation(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(64))
    with pytest.raises(BundleError, match=ADVICE):
        read_binary(tmp_path / "x.bin")


def test_genie_names_the_installation() -> None:
    with pytest.raises(BundleError, match=ADVICE):
        library._load_library()
