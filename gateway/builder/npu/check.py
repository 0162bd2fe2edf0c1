"""Compares a compiled part of a model with the CPU, because the NPU computes some accepted graphs wrongly.

Tokens of a text go through the prompt graph in windows. The last ones go through the step graph, and the first ones
also through the graphs for batched steps and for drafts, if there are any. There are two references on the CPU
provider. The first is the graph that was compiled: a difference is a fault of the NPU. The second is float32 with the
source's own weights: a difference also includes the error of the number format.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
from msgspec import Struct

from gateway.builder.npu.part_runner import Hidden, cpu_session, relative_error, run_part
from gateway.child import run_in_child, serve_request
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import open_session

STEPS = 3  # tokens for the step graph
_DRAFTED = 12  # tokens for the graph for drafts: more than a window


class Graphs(Struct, frozen=True, kw_only=True):
    """The graphs of one part: for prompts, for steps, for batched steps and for drafts (None: no graph)."""

    prompt: str
    step: str
    batch: str | None = None
    verify: str | None = None

    @classmethod
    def of(cls, prompt: Path, step: Path, batch: Path | None = None, verify: Path | None = None) -> Graphs:
        return cls(
            prompt=str(prompt),
            step=str(step),
            batch=str(batch) if batch else None,
            verify=str(verify) if verify else None,
        )


class CheckRequest(Struct, frozen=True, kw_only=True):
    """The graphs to compare and the hidden states to compare them on.

    Args:
        compiled, source, reference: the compiled graphs, their source graphs, the float32 graphs.
        on_npu, in_float: .npy files with the part's input from the NPU and from float32, float32 (tokens, hidden). The
            part's output overwrites them.
    """

    compiled: Graphs
    source: Graphs
    reference: Graphs
    on_npu: str
    in_float: str
    device: NpuDevice


class PartCheck(Struct, frozen=True, kw_only=True):
    """Relative errors |a - b| / |b| of the part's last hidden state, averaged over the tokens.

    Args:
        nodes: nodes of the prompt graph; all of them run on the NPU.
        npu_error: the NPU against the same graph on the CPU.
        error: all parts up to this one on the NPU against float32.
        largest: the largest float32 value. The largest float16 value is 65504.
        batch_error, verify_error: `npu_error` of the batched steps and of the graph for drafts; None without a graph.
    """

    nodes: int
    npu_error: float
    error: float
    largest: float
    batch_error: float | None = None
    verify_error: float | None = None


def check_part(request: CheckRequest) -> PartCheck:
    """Run the comparison in a child process. Raises BundleError when it crashes."""
    reply = run_in_child(__name__, request, Path(request.compiled.prompt).name)
    return msgspec.json.decode(reply, type=PartCheck)


def _check(request: CheckRequest) -> PartCheck:
    inputs, float_inputs = np.load(request.on_npu), np.load(request.in_float)
    on_npu = run_part([open_session(Path(path), request.device) for path in _paths(request.compiled)], inputs, STEPS)
    on_cpu = run_part([cpu_session(path, exact=True) for path in _paths(request.source)], inputs, STEPS)
    in_float = run_part([cpu_session(path, mapped=True) for path in _paths(request.reference)], float_inputs, STEPS)
    np.save(request.on_npu, on_npu)
    np.save(request.in_float, in_float)
    return PartCheck(
        nodes=len(onnx.load(request.source.prompt, load_external_data=False).graph.node),
        npu_error=relative_error(on_npu, on_cpu),
        error=relative_error(on_npu, in_float),
        largest=float(np.abs(in_float).max()),
        batch_error=_error(request, request.compiled.batch, request.source.batch, inputs[:STEPS], STEPS),
        verify_error=_error(request, request.compiled.verify, request.source.verify, inputs[:_DRAFTED]),
    )


def _error(
    request: CheckRequest, compiled: str | None, source: str | None, inputs: Hidden, steps: int = 0
) -> float | None:
    """The NPU's error of a graph that computes all tokens alone: `steps` single ones, or windows."""
    if compiled is None or source is None:
        return None
    on_npu = run_part([open_session(Path(compiled), request.device)], inputs, steps)
    on_cpu = run_part([cpu_session(source, exact=True)], inputs, steps)
    return relative_error(on_npu, on_cpu)


def _paths(graphs: Graphs) -> tuple[str, str]:
    return graphs.prompt, graphs.step


if __name__ == "__main__":
    sys.exit(serve_request(CheckRequest, _check))
