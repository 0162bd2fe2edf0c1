"""Compares a compiled part of a model with the CPU: what the NPU accepts is not always what it computes rightly.

A run of tokens goes through the prompt graph in windows, its last tokens through the step graph, and its first ones
through the graph for several sequences if there is one. Two references, both
on the CPU provider: the very graphs that were compiled, and the same layers in float32 from the source's own weights.
The first tells a wrong NPU from a coarse number format, the second what the format costs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
from msgspec import Struct

from gateway.builder.npu.part_runner import Hidden, cpu_session, run_part
from gateway.child import run_in_child, serve_request
from gateway.qnn.provider import NpuDevice, open_session

STEPS = 3  # tokens that go through the step graph


class Graphs(Struct, frozen=True, kw_only=True):
    """The graphs of one part: for prompts, for steps, and for steps of several sequences where there is one."""

    prompt: str
    step: str
    batch: str | None = None

    @classmethod
    def of(cls, prompt: Path, step: Path, batch: Path | None = None) -> Graphs:
        return cls(prompt=str(prompt), step=str(step), batch=str(batch) if batch else None)


class CheckRequest(Struct, frozen=True, kw_only=True):
    """`on_npu` and `in_float`: .npy files with the part's input, float32 (tokens, hidden), as the parts before it left
    them; they get its output."""

    compiled: Graphs
    source: Graphs
    reference: Graphs
    on_npu: str
    in_float: str
    device: NpuDevice


class PartCheck(Struct, frozen=True, kw_only=True):
    """Relative errors |a - b| / |b| of the part's last hidden state, the mean over the tokens.

    `npu_error` is the NPU against the same graph on the CPU, `error` the NPU's chain of parts against float32.
    `batch_error` is `npu_error` for the steps of several sequences, None without a graph for them. `largest` is the
    largest number in float32; float16 ends at 65504. `nodes`: of the prompt graph, all on the NPU.
    """

    nodes: int
    npu_error: float
    error: float
    largest: float
    batch_error: float | None = None


def check_part(request: CheckRequest) -> PartCheck:
    """Run the comparison in a child process. Raises BundleError when it crashes."""
    run_in_child(__name__, request, Path(request.compiled.prompt).name)
    return msgspec.json.decode(_result(request).read_bytes(), type=PartCheck)


def _result(request: CheckRequest) -> Path:
    return Path(request.on_npu).with_suffix(".json")


def _check(request: CheckRequest) -> None:
    inputs, float_inputs = np.load(request.on_npu), np.load(request.in_float)
    on_npu = run_part([open_session(Path(path), request.device) for path in _paths(request.compiled)], inputs, STEPS)
    on_cpu = run_part([cpu_session(path, exact=True) for path in _paths(request.source)], inputs, STEPS)
    in_float = run_part([cpu_session(path) for path in _paths(request.reference)], float_inputs, STEPS)
    np.save(request.on_npu, on_npu)
    np.save(request.in_float, in_float)
    check = PartCheck(
        nodes=len(onnx.load(request.source.prompt, load_external_data=False).graph.node),
        npu_error=_relative(on_npu, on_cpu),
        error=_relative(on_npu, in_float),
        largest=float(np.abs(in_float).max()),
        batch_error=_batch_error(request, inputs),
    )
    _result(request).write_bytes(msgspec.json.encode(check))


def _batch_error(request: CheckRequest, inputs: Hidden) -> float | None:
    compiled, source = request.compiled, request.source
    if compiled.batch is None or source.batch is None:
        return None
    tokens = inputs[:STEPS]
    on_npu = run_part([open_session(Path(compiled.batch), request.device)], tokens, STEPS)
    on_cpu = run_part([cpu_session(source.batch, exact=True)], tokens, STEPS)
    return _relative(on_npu, on_cpu)


def _paths(graphs: Graphs) -> tuple[str, str]:
    return graphs.prompt, graphs.step


def _relative(values: Hidden, reference: Hidden) -> float:
    """The mean of the tokens' own errors: one token with huge values must not speak for all.

    Huge where either holds what is no number, since JSON and comparisons know no NaN.
    """
    errors = np.linalg.norm(values - reference, axis=1) / np.linalg.norm(reference, axis=1)
    error = float(errors.mean())
    return error if np.isfinite(error) else 1e9


if __name__ == "__main__":
    sys.exit(serve_request(CheckRequest, _check))
