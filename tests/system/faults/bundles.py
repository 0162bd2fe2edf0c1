"""Copies of a tiny bundle whose graph needs memory that no machine, or no limited process, has."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from gateway.bundles.hashes import write_hashes

#: The token that makes a device call allocate `_TOO_MANY` numbers.
STARVE = 380
_TOO_MANY = 1 << 58  # numbers of four bytes: more than the addresses of any process


def starved_by_a_token(tiny: Path, folder: Path) -> Path:
    """ONNX Runtime cannot allocate what a call with the token STARVE needs. The results of other calls are the same."""
    bundle, model = _copy(tiny, folder)
    graph = model.graph
    logits = graph.output[0].name
    for node in graph.node:
        node.output[:] = ["starved/fed logits" if name == logits else name for name in node.output]
    for name, value in {"starved/starve": STARVE, "starved/too many": _TOO_MANY, "starved/one": 1}.items():
        graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], [value]))
    graph.node.extend(
        [
            helper.make_node("ReduceMax", [graph.input[0].name], ["starved/largest"], keepdims=0),
            helper.make_node("Equal", ["starved/largest", "starved/starve"], ["starved/starves"]),
            helper.make_node("Where", ["starved/starves", "starved/too many", "starved/one"], ["starved/count"]),
            helper.make_node("ConstantOfShape", ["starved/count"], ["starved/zeros"]),
            helper.make_node("ReduceMax", ["starved/zeros"], ["starved/zero"], keepdims=0),
            helper.make_node("Add", ["starved/fed logits", "starved/zero"], [logits]),
        ]
    )
    return _save(model, bundle)


def with_two_gigabytes(tiny: Path, folder: Path) -> Path:
    """The file is small: its weights are sparse. ONNX Runtime makes them dense when it opens the graph."""
    bundle, model = _copy(tiny, folder)
    values = helper.make_tensor("starved/weights", TensorProto.FLOAT, [1], [0.0])
    indices = helper.make_tensor("starved/indices", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [(1 << 29) - 1]))
    model.graph.node.append(helper.make_node("ReduceMax", ["starved/weights"], ["starved/unused"]))
    return _save(model, bundle)


def _copy(tiny: Path, folder: Path) -> tuple[Path, onnx.ModelProto]:
    bundle = Path(shutil.copytree(tiny, folder))
    return bundle, onnx.load(bundle / "model.onnx", load_external_data=False)


def _save(model: onnx.ModelProto, bundle: Path) -> Path:
    onnx.save(model, bundle / "model.onnx")
    write_hashes(bundle)
    return bundle
