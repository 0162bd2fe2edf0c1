"""Compiles two graphs for the emulated NPU into one context binary, with attention on the CPU between the networks.

The emulator cannot load a binary whose graphs share weights, and ONNX Runtime cannot write another one for two graphs.
So the graphs are compiled as one graph, and the compiled graph is then split.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, compose, helper

from gateway.qnn.compile import compile_graphs, compiled_name
from gateway.qnn.provider import emulated_npu

_PREFIXES = ("first/", "second/")
_ON_CPU = ("GroupQueryAttention", "ReduceSum", "Cast", "Sum", "Max")
_PARTS = ("node", "initializer", "input", "output", "value_info")


def compile_into_one(graphs: Sequence[Path], binary: Path) -> None:
    """Replace the two graphs by compiled ones whose first network names `binary`, a file of the same folder later."""
    device = emulated_npu()
    assert device is not None
    models = [onnx.load(path, load_external_data=False) for path in graphs]
    joint = graphs[0].with_name(f"{graphs[0].stem}_joint.onnx")  # the names of the networks depend on the path
    out = joint.with_name(f"{joint.stem}_compiled")
    onnx.save(_joined(*models), joint)
    affinity = graphs[0].with_name("affinity.json")
    affinity.write_text(json.dumps({"op_type": dict.fromkeys(_ON_CPU, "cpu")}), encoding="utf-8")
    compile_graphs([joint], out, device, options={"op_affinity": str(affinity)}, cpu_fallback=True)
    (made,) = out.glob("*.bin")
    shutil.move(made, binary)
    compiled = onnx.load(out / compiled_name(joint))
    for path, model, prefix in zip(graphs, models, _PREFIXES, strict=True):
        onnx.save(_split(compiled, model, prefix, binary.name), path)


def _joined(first: onnx.ModelProto, second: onnx.ModelProto) -> onnx.ModelProto:
    """Both graphs in one. The networks of the second need the first output of the first: none has nodes of both.

    The nodes that connect them are for the compiler only.
    """
    joint, other = (compose.add_prefix(model, prefix) for model, prefix in zip((first, second), _PREFIXES, strict=True))
    hidden, past = (f"{_PREFIXES[1]}{name}" for name in (second.graph.input[0].name, "past_seq_len"))
    for value in other.graph.input:
        if value.name in (hidden, past):  # the inputs of the networks
            value.name += "_free"
    for part in ("initializer", "input", "output"):
        getattr(joint.graph, part).extend(getattr(other.graph, part))
    nodes = joint.graph.node
    nodes.append(helper.make_node("ReduceSum", [joint.graph.output[0].name], ["sum"], keepdims=0))
    nodes.append(helper.make_node("Cast", ["sum"], ["int_sum"], to=TensorProto.INT32))
    nodes.append(helper.make_node("Sum", [f"{hidden}_free", "sum"], [hidden]))
    nodes.append(helper.make_node("Max", [f"{past}_free", "int_sum"], [past]))
    nodes.extend(other.graph.node)
    return joint


def _split(joint: onnx.ModelProto, original: onnx.ModelProto, prefix: str, binary: str) -> onnx.ModelProto:
    """The compiled nodes of one graph. Its inputs and outputs get their original names."""
    model = onnx.ModelProto()
    model.CopyFrom(joint)
    graph = model.graph
    for part in _PARTS:
        del getattr(graph, part)[:]
    graph.input.extend(original.graph.input)
    graph.output.extend(original.graph.output)
    public = {prefix + value.name: value.name for value in (*graph.input, *graph.output)}
    for node in joint.graph.node:
        if node.op_type in ("EPContext", "GroupQueryAttention") and node.output[0].startswith(prefix):
            kept = graph.node.add()
            kept.CopyFrom(node)
            kept.input[:] = [public.get(name, name) for name in node.input]
            kept.output[:] = [public.get(name, name) for name in node.output]
    for part in ("initializer", "value_info"):
        getattr(graph, part).extend(item for item in getattr(joint.graph, part) if item.name.startswith(prefix))
    networks = [node for node in graph.node if node.op_type == "EPContext"]
    for node in networks:
        _point_to(node, binary, main=node is networks[0])
    return model


def _point_to(node: onnx.NodeProto, binary: str, *, main: bool) -> None:
    new = {"main_context": int(main), "embed_mode": 0} | ({"ep_cache_context": binary} if main else {})
    kept = [item for item in node.attribute if item.name not in ("main_context", "embed_mode", "ep_cache_context")]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in new.items())])
