"""Compares a compiled part of a model with the CPU: what the NPU accepts is not always what it computes rightly.

A run of tokens goes through the prompt graph in windows, its last tokens through the step graph. Two references, both
on the CPU provider: the very graphs that were compiled, and the same layers in float32 from the source's own weights.
The first tells a wrong NPU from a coarse number format, the second what the format costs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from msgspec import Struct
from numpy.typing import NDArray

from gateway.bundles.child import run_in_child, serve_request
from gateway.bundles.qnn_provider import NpuDevice, open_session

Hidden = NDArray[np.float32]  # (tokens, hidden)

STEPS = 3  # tokens that go through the step graph


class Graphs(Struct, frozen=True, kw_only=True):
    """The prompt graph and the step graph of one part."""

    prompt: str
    step: str

    @classmethod
    def of(cls, prompt: Path, step: Path) -> Graphs:
        return cls(prompt=str(prompt), step=str(step))


class CheckRequest(Struct, frozen=True, kw_only=True):
    """`on_npu` and `in_float`: .npy files with the part's input, float32 (tokens, hidden), as the parts before it left
    them; they get its output."""

    compiled: Graphs
    source: Graphs
    reference: Graphs
    on_npu: str
    in_float: str
    device: NpuDevice
    width: int
    context: int


class PartCheck(Struct, frozen=True, kw_only=True):
    """Relative errors |a - b| / |b| of the last hidden state over all tokens.

    `npu_error` is the NPU against the same graph on the CPU, `error` the NPU's chain of parts against float32.
    `largest` is the largest number in float32; float16 ends at 65504. `nodes`: of the prompt graph, all on the NPU.
    """

    nodes: int
    npu_error: float
    error: float
    largest: float


def check_part(request: CheckRequest) -> PartCheck:
    """Run the comparison in a child process. Raises BundleError when it crashes."""
    run_in_child(__name__, request, Path(request.compiled.prompt).name)
    return msgspec.json.decode(_result(request).read_bytes(), type=PartCheck)


def _result(request: CheckRequest) -> Path:
    return Path(request.on_npu).with_suffix(".json")


def _check(request: CheckRequest) -> None:
    inputs, float_inputs = np.load(request.on_npu), np.load(request.in_float)
    on_npu = _run(request, [open_session(Path(path), request.device) for path in _paths(request.compiled)], inputs)
    on_cpu = _run(request, [_cpu_session(path) for path in _paths(request.source)], inputs)
    in_float = _run(request, [_cpu_session(path) for path in _paths(request.reference)], float_inputs)
    np.save(request.on_npu, on_npu)
    np.save(request.in_float, in_float)
    check = PartCheck(
        nodes=len(onnx.load(request.source.prompt, load_external_data=False).graph.node),
        npu_error=_relative(on_npu, on_cpu),
        error=_relative(on_npu, in_float),
        largest=float(np.abs(in_float).max()),
    )
    _result(request).write_bytes(msgspec.json.encode(check))


def _paths(graphs: Graphs) -> tuple[str, str]:
    return graphs.prompt, graphs.step


def _cpu_session(path: str) -> ort.InferenceSession:
    """Unoptimised: at full optimisation the CPU provider itself is half a percent off on blocks of 4 bits."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def _run(request: CheckRequest, sessions: list[ort.InferenceSession], inputs: Hidden) -> Hidden:
    """All tokens through prompt windows and, at the end, single steps; the hidden states that come out."""
    prompt, step = sessions
    names = {value.name: value for value in prompt.get_inputs()}
    hidden = next(name for name in names if "hidden_states" in name)
    dtype = np.float16 if names[hidden].type == "tensor(float16)" else np.float32
    cache = {name: np.zeros(value.shape, dtype) for name, value in names.items() if len(value.shape) == 4}
    windows = [(prompt, start, request.width) for start in range(0, len(inputs) - STEPS, request.width)]
    steps = [(step, start, 1) for start in range(len(inputs) - STEPS, len(inputs))]
    outputs = []
    for session, start, width in windows + steps:
        stop = min(start + width, len(inputs) if session is step else len(inputs) - STEPS)
        window = np.zeros((1, width, inputs.shape[1]), dtype)
        window[0, : stop - start] = inputs[start:stop]
        feeds: dict[str, Any] = {
            hidden: window,
            "past_seq_len": np.array([[start + width - 1]], np.int32),
            "total_seq_len": np.array([request.context], np.int32),
        }
        results = dict(
            zip((value.name for value in session.get_outputs()), session.run(None, feeds | cache), strict=True)
        )
        cache = {name: results[name.replace("past_", "present_")] for name in cache}
        outputs.append(next(value for name, value in results.items() if name not in _present(cache))[0, : stop - start])
    return np.concatenate(outputs).astype(np.float32)


def _present(cache: dict[str, Any]) -> set[str]:
    return {name.replace("past_", "present_") for name in cache}


def _relative(values: Hidden, reference: Hidden) -> float:
    """Infinite where either holds what is no number: JSON and comparisons know no NaN."""
    error = float(np.linalg.norm(values - reference) / np.linalg.norm(reference))
    return error if np.isfinite(error) else 1e9


if __name__ == "__main__":
    sys.exit(serve_request(CheckRequest, _check))
