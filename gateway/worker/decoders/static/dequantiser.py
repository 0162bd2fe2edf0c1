"""Gives logits the scale that AI Hub's export for onnxruntime-genai leaves out.

The last stage of that export is one Cast from uint16 to float32, where DequantizeLinear belongs. The most likely token
is right, but differences of logits are hundreds of times too large, so every probability is wrong. The context binary
has the scale and the zero point of its outputs. If they cannot be read, the model can only generate greedily.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from msgspec import Struct
from onnx import TensorProto, helper, numpy_helper

from gateway.bundles.genai_config import Stage
from gateway.bundles.genie.tensors import read_tensors
from gateway.bundles.static_pipeline import Pipeline, runs_on_npu
from gateway.errors import BundleError
from gateway.qnn.binary_info import read_binary
from gateway.qnn.context import load_graph, read_compiled

_log = logging.getLogger(__name__)
_LARGEST = 64 * 1024  # bytes of a graph with one Cast; a head with its weights has megabytes
_LARGEST_CODE = {TensorProto.UINT8: 2**8 - 1, TensorProto.UINT16: 2**16 - 1}


class BareCast(Struct, frozen=True, kw_only=True):
    """A logits stage that is one Cast from an integer.

    Args:
        file: its graph.
        dequantiser: the graph that replaces it, serialised; None: no scale is known.
    """

    file: Path
    dequantiser: bytes | None


class _Scale(Struct, frozen=True):
    """value = (code - zero_point) * scale"""

    scale: float
    zero_point: int


def find_bare_cast(pipeline: Pipeline) -> BareCast | None:
    """The logits stage if it is a bare Cast, else None. Raises BundleError if its file is not an ONNX graph."""
    file = next((pipeline.file(stage) for stage in pipeline.stages if _outputs_logits(pipeline, stage)), None)
    if file is None or file.stat().st_size > _LARGEST:
        return None
    model = load_graph(file)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    nodes = list(model.graph.node)
    if len(nodes) != 1 or nodes[0].op_type != "Cast" or kinds.get(nodes[0].input[0]) not in _LARGEST_CODE:
        return None
    codes = nodes[0].input[0]
    scale = _scale(pipeline, codes, _LARGEST_CODE[kinds[codes]])
    if scale is None:
        _log.warning("%s: the scale of its logits is unknown: it generates greedily only", pipeline.folder.name)
        return BareCast(file=file, dequantiser=None)
    return BareCast(file=file, dequantiser=_dequantiser(model, scale, kinds[codes]))


def _outputs_logits(pipeline: Pipeline, stage: Stage) -> bool:
    return pipeline.config.decoder.outputs.logits in stage.outputs and not runs_on_npu(stage)


def _scale(pipeline: Pipeline, name: str, largest_code: int) -> _Scale | None:
    """The scale of the NPU's output `name`; None if it is unknown, unusable, or not the same in all graphs."""
    for stated in (_in_binaries(pipeline, name), _in_metadata(pipeline.folder, name)):
        if found := set(stated):
            scale = found.pop()
            is_usable = not found and 0 < scale.scale < math.inf and 0 <= scale.zero_point <= largest_code
            return scale if is_usable else None
    return None


def _in_binaries(pipeline: Pipeline, name: str) -> Iterator[_Scale]:
    files = {pipeline.file(stage) for stage in pipeline.stages if runs_on_npu(stage) and name in stage.outputs}
    compiled = [found for file in files if (found := read_compiled(file)) is not None]
    for binary in {binary for graph in compiled for binary in graph.binaries}:
        try:
            graphs = read_binary(binary).graphs.values()
        except BundleError as error:
            _log.warning("the tensors of a context binary are unknown: %s", error)
            continue
        for tensor in (tensor for graph in graphs for tensor in graph.outputs):
            if tensor.name == name and tensor.scale:
                yield _Scale(tensor.scale, tensor.zero_point)


def _in_metadata(folder: Path, name: str) -> Iterator[_Scale]:
    """From AI Hub's metadata of another download of the same export, if it lies next to the graphs."""
    for graph in read_tensors(folder, with_yaml=True).values():
        tensor = graph.outputs.get(name)
        stated = tensor.quantization_parameters if tensor else None
        if stated and stated.scale is not None and stated.zero is not None:
            yield _Scale(stated.scale, stated.zero)


def _dequantiser(cast: onnx.ModelProto, scale: _Scale, kind: int) -> bytes:
    """The graph with the same inputs and outputs, and DequantizeLinear in place of Cast."""
    graph, node = cast.graph, cast.graph.node[0]
    constants = {
        "logits_scale": np.array(scale.scale, np.float32),
        "logits_zero_point": np.array(scale.zero_point, helper.tensor_dtype_to_np_dtype(kind)),
    }
    made = helper.make_graph(
        [helper.make_node("DequantizeLinear", [node.input[0], *constants], list(node.output))],
        graph.name,
        list(graph.input),
        list(graph.output),
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())
