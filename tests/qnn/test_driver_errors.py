"""The codes of Qualcomm's libraries: published log lines are replayed, and give one sentence and a command."""

from __future__ import annotations

import re
from pathlib import Path

import onnxruntime as ort
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as native

from gateway.errors import BundleError
from gateway.qnn.device import NpuDevice
from gateway.qnn.driver_errors import DRIVER_ERRORS, explain, explained
from gateway.qnn.provider import open_session
from gateway.worker.decoders.onnx import running_failed
from tests.support.paths import ROOT

#: What the libraries printed in public reports -> the code of the reason.
REPLAYED = {
    "Could not create context from binary for context index = 0 : err 5005": 5005,
    "Failed to create context from binary with err 0x138d": 5005,
    "Could not create context from binary for context index = 0 : err 5000": 5000,
    "Could not create context from binary for context index = 0 : err 1009": 1009,
    "QNN SetupBackend failed Failed to create device. Error: 14001": 14001,
    "Unable to load Remote symbols 4000\nTransport layer setup failed: 14001": 14001,
    "Failed to create transport for device, error: 4000\nFailed to load skel, error: 4000": 4000,
    "Failed to retrieve skel build id: err: 1003\nFailed to load skel, error: 4000": 1003,
    "Context create from binary failed for deviceId 0 coreId 0 pdId 0 err 1002": 1002,
    "Dma execution failed on the skel side. result = 1100 transport error = 0": 1100,
    "Failed to create device. Error: QNN_COMMON_ERROR_INCOMPATIBLE_BINARIES: Loaded libraries": 1008,
    "can't create qnn graph handle with graph name MUL, error = 1008": 1008,
    "DspTransport.openSession qnn_open failed, 0x80000406, prio 100\nFailed to load skel, error: 4000": 0x80000406,
    "IDspTransport: Unknown rpc status 0x80000406": 0x80000406,
    "Failed to interpret QNN context binary. Error code 30010. Try verifying": 30010,
    "graphExecute returned 6001": 6001,
    "memRegister failed: error code 8002": 8002,
    "memRegister failed: error code 8003": 8003,
    "SSR, error 1007": 1007,
}


@pytest.mark.parametrize(("text", "code"), REPLAYED.items(), ids=[f"{code:x}" for code in REPLAYED.values()])
def test_published_message_has_its_reason_and_the_next_step(text: str, code: int) -> None:
    known = explain(text)
    assert known is not None and known.code == code
    line = explained(text)
    assert line.startswith(known.sentence) and text.split()[-1] in line and "\n" not in line


@pytest.mark.parametrize(
    "text",
    [
        "Allocated total size = 1002 across 8 buffers",
        "the prompt has 5005 tokens",
        "failed to read 14001 bytes at 4000",
        "error 10021",
        "v2.51.0 1008",
        "",
    ],
)
def test_another_number_is_no_code(text: str) -> None:
    assert explain(text) is None
    assert explained(text) == text


def test_each_code_is_listed_once_with_source_sentence_and_command() -> None:
    codes = [known.code for known in DRIVER_ERRORS]
    assert len(codes) == len(set(codes)) >= 20
    for known in DRIVER_ERRORS:
        assert known.source.startswith("https://")
        assert re.search("`(npu-gateway|python -m) [^`]+`", known.step), known.code
        assert known.meaning[0].isupper() and known.meaning[-1] != "."


def test_message_has_no_path_of_the_server() -> None:
    assert explained("Load model from /home/user/models/m/x.onnx failed") == "Load model from x.onnx failed"
    assert explained(r"Load C:\Users\me\models\x.bin failed") == "Load x.bin failed"


@pytest.mark.parametrize("code", [1002, 1008, 5005, 14001])
def test_driver_that_refuses_a_session_is_explained(
    code: int, npu: NpuDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {}

    def refuse(*positional: object, **named: object) -> None:
        arguments.update(named)
        raise native.Fail(f"[ONNXRuntimeError] : 1 : FAIL : QNN SetupBackend failed Error: {code}")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(BundleError) as caught:
        open_session(tmp_path / "part_1.onnx", npu)
    known = next(each for each in DRIVER_ERRORS if each.code == code)
    assert caught.value.message.startswith(f"The NPU refuses part_1.onnx: {known.meaning} (error {code}, ")
    assert known.step in caught.value.message
    assert arguments["enable_fallback"] == 0  # else a second try hides this error


def test_driver_that_fails_while_it_runs_is_explained() -> None:
    error = running_failed(native.RuntimeException("qnn_graph_execute failed. Error 1100"))
    assert "The NPU failed in the middle of a computation" in error.message and "`npu-gateway doctor`" in error.message


def test_codes_in_the_documentation_are_known() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    section = page.split("## Error codes of the NPU driver")[1]
    codes = {int(code) for code in re.findall(r"\b\d{4,5}\b", section)}
    assert len(codes) >= 7 and codes <= {each.code for each in DRIVER_ERRORS}
