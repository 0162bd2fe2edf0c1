"""Writes AI Hub's export for ONNX Runtime GenAI as its exporter does.

It has several parts, and both phases share the binary of a part. The last stage is a Cast without a scale,
`pad_token_id` is the list of end tokens, and the tokenizer is missing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from gateway.qnn.binary_info import Graph, Tensor, read_binary
from tests.support.npu.ai_hub_bundle import STAGES, config_of, npu_stage, wrapper, write_host_graphs
from tests.support.npu.tiny_htp_decoder import TinyDecoder

#: The names of the graph files and of the binaries: AI Hub's, and those of llmware's Phi-3.5.
AI_HUB = ("tiny_{phase}_{part}", "tiny_part_{part}.bin")
LLMWARE = ("ar{width}_cl{context}_{part}_qnn_ctx", "weight_sharing_model_{part}.serialized.bin")


def write_export(
    folder: Path, binaries: Sequence[Path], *, names: tuple[str, str] = AI_HUB, embedded: bool = False
) -> Path:
    """Write the bundle.

    Args:
        binaries: one for each part, or for each part and phase, with one context length.
        embedded: the binaries are inside the graphs, where the gateway does not read a scale.
    """
    decoder, stages = TinyDecoder(), []
    folder.mkdir(parents=True)
    write_host_graphs(folder, decoder)
    onnx.save(_cast(), folder / "dequantizer.onnx")
    for width, phase in STAGES.items():
        for index, (binary, graph) in enumerate(_graphs(binaries, width), start=1):
            part = f"{index}_of_{len(_graphs(binaries, width))}"
            name = names[0].format(phase=phase, part=part, width=width, context=decoder.context)
            content = binary.read_bytes() if embedded else names[1].format(part=part)
            values = ([_value(tensor) for tensor in tensors] for tensors in (graph.inputs, graph.outputs))
            onnx.save(wrapper(graph.name, *values, content), folder / f"{name}.onnx")
            inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (graph.inputs, graph.outputs))
            stages.append(npu_stage(name, inputs, outputs, phase))
            if not embedded:
                shutil.copyfile(binary, folder / str(content))
    config = config_of(decoder, stages)
    config["model"]["pad_token_id"] = config["model"]["eos_token_id"]
    config["model"]["decoder"]["pipeline"] = [
        {name: stage for each in config["model"]["decoder"]["pipeline"] for name, stage in each.items()}
    ]
    (folder / "genai_config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")
    (folder / "tool-versions.yaml").write_text("tool_versions:\n  qairt: 2.51.0.260501\n", encoding="utf-8")
    return folder


def _graphs(binaries: Sequence[Path], width: int) -> list[tuple[Path, Graph]]:
    """The graph of each part for windows of `width` tokens, with its binary."""
    return [
        (binary, graph)
        for binary in binaries
        for graph in read_binary(binary).graphs.values()
        if _width(graph) == width
    ]


def _width(graph: Graph) -> int:
    (first,) = (tensor for tensor in graph.inputs if len(tensor.shape) < 4)  # ids or hidden state: (1, width, ...)
    return first.shape[1]


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, TensorProto.DataType.Value(tensor.dtype.upper()), tensor.shape)


def _cast() -> onnx.ModelProto:
    shape = [1, "sequence_length", "vocab_size"]
    node = helper.make_node("Cast", ["logits"], ["logits_dequantized"], "logits_dequantizer", to=TensorProto.FLOAT)
    graph = helper.make_graph(
        [node],
        "dequantizer",
        [helper.make_tensor_value_info("logits", TensorProto.UINT16, shape)],
        [helper.make_tensor_value_info("logits_dequantized", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
