"""Builds the head of a model for the NPU: writes its graph, compiles it and compares it with the CPU.

The bundle also has the head for the CPU. It runs where the NPU's is refused, and other programs use it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime as ort
from msgspec import Struct

from gateway.builder.graphs.static_tables import write_npu_head
from gateway.builder.npu.part_runner import Hidden, cpu_session, relative_error
from gateway.builder.sources.source import ModelSource
from gateway.bundles.static_pipeline import NPU_HEAD
from gateway.child import Progress, run_in_child, serve_request
from gateway.errors import BundleError
from gateway.qnn.compile import compile_graphs
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import open_session

#: The largest relative error of the logits against the same graph on the CPU. The emulator's is 0.0005. With int8
#: activations it is 0.007, and that changes first choices of SmolLM2.
_MAX_ERROR = 0.003


class HeadCheck(Struct, frozen=True, kw_only=True):
    """The head on the NPU, for the NPU's hidden states of the checked tokens.

    Args:
        npu_error: relative error of the logits against the same graph on the CPU, averaged over the tokens.
        top1: share of the tokens for which it predicts the same token as the head for the CPU.
    """

    npu_error: float
    top1: float


class _Request(Struct, frozen=True, kw_only=True):
    compiled: str
    source: str
    on_cpu: str
    hidden: str
    device: NpuDevice


def build_head(
    source: ModelSource, folder: Path, work: Path, hidden: Path, device: NpuDevice, rows: int, progress: Progress
) -> HeadCheck | None:
    """Add the head for the NPU to the bundle in `folder`. None if the NPU refuses it or computes it wrongly.

    Args:
        work: a folder for temporary files.
        hidden: .npy file with hidden states of the last layer, float32 (tokens, hidden).
        rows: tokens of one call.
    """
    work.mkdir()
    progress("head: compiling", 0.0)
    graph = write_npu_head(source, work, rows)
    try:
        (compiled,) = compile_graphs([graph], work / "compiled", device)
        progress("head: compiling", 1.0)
        check = _check_in_child(
            _Request(
                compiled=str(compiled),
                source=str(graph),
                on_cpu=str(folder / "lm_head.onnx"),
                hidden=str(hidden),
                device=device,
            )
        )
    except BundleError as error:
        progress(f"the head stays on the CPU: {error.message}", 1.0)
        return None
    if check.npu_error > _MAX_ERROR:
        progress(f"the head stays on the CPU: the NPU's relative error is {check.npu_error:.4f}", 1.0)
        return None
    assert compiled.name == NPU_HEAD
    for file in compiled.parent.iterdir():
        shutil.move(file, folder / file.name)
    return check


def _check_in_child(request: _Request) -> HeadCheck:
    return msgspec.json.decode(run_in_child(__name__, request, NPU_HEAD), type=HeadCheck)


def _check(request: _Request) -> HeadCheck:
    hidden = np.load(request.hidden)
    on_npu = _logits(open_session(Path(request.compiled), request.device), hidden)
    same_graph = _logits(cpu_session(request.source, exact=True), hidden)
    on_cpu = _logits(cpu_session(request.on_cpu), hidden)
    top1 = float((on_npu.argmax(-1) == on_cpu.argmax(-1)).mean())
    return HeadCheck(npu_error=relative_error(on_npu, same_graph), top1=top1)


def _logits(session: ort.InferenceSession, hidden: Hidden) -> Hidden:
    """Float32 (tokens, vocab), in calls of as many rows as the graph has."""
    declared = session.get_inputs()[0]
    dtype = np.float16 if declared.type == "tensor(float16)" else np.float32
    rows = declared.shape[1] if isinstance(declared.shape[1], int) else len(hidden)
    found = []
    for start in range(0, len(hidden), rows):
        window = np.zeros((1, rows, hidden.shape[1]), dtype)
        tokens = hidden[start : start + rows]
        window[0, : len(tokens)] = tokens
        (logits,) = session.run(None, {declared.name: window})
        found.append(logits[0, : len(tokens)])
    return np.concatenate(found).astype(np.float32)


if __name__ == "__main__":
    sys.exit(serve_request(_Request, _check))
