"""Writes a bundle in AI Hub's layout around the tiny decoder. `ai_hub_export.py` has the exporter's own form.

    position-processor (CPU) -> quantizer (CPU) -> prompt_ar8_cl128_1_of_1 or token_ar1_cl128_1_of_1 (NPU)
    -> dequantizer (CPU)

The host provides ids, a mask of ones and zeros over the context, and positions. Each NPU stage is an ONNX file with one
EPContext node for a context binary.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.npu.tiny_htp_decoder import LOGITS, MASK, PROMPT_WIDTH, UNIT, TinyDecoder
from tests.support.npu.tiny_htp_graph import build_graph

STAGES = {PROMPT_WIDTH: "prompt", 1: "token"}

Values = Sequence[onnx.ValueInfoProto]


def write_bundle(folder: Path, decoder: TinyDecoder, *, compiled: Path | None = None) -> Path:
    """Write the bundle: with context binaries from `compiled` (a folder of `compile_in_child`), or with ONNX graphs."""
    folder.mkdir(parents=True)
    write_host_graphs(folder, decoder)
    stages = []
    for width, phase in STAGES.items():
        graph, name, binary = build_graph(decoder, width), f"{phase}_1_of_1", f"tiny_{phase}_part_1_of_1.bin"
        if compiled:
            shutil.copyfile(compiled / f"{phase}_ctx_qnn.bin", folder / binary)
            values = list(graph.graph.input), list(graph.graph.output)
            graph = wrapper(f"{phase}_ar{width}_cl{decoder.context}_1_of_1", *values, binary)
        onnx.save(graph, folder / f"{name}.onnx")
        inputs, outputs = ([value.name for value in values] for values in (graph.graph.input, graph.graph.output))
        stages.append(npu_stage(name, inputs, outputs, phase))
    (folder / "genai_config.json").write_text(json.dumps(config_of(decoder, stages)), encoding="utf-8")
    return folder


def write_host_graphs(folder: Path, decoder: TinyDecoder) -> None:
    """Write the stages that run on the CPU."""
    onnx.save(_position_processor(decoder), folder / "position-processor.onnx")
    onnx.save(_quantizer(decoder), folder / "quantizer.onnx")
    onnx.save(_dequantizer(decoder), folder / "dequantizer.onnx")


def wrapper(graph: str, inputs: Values, outputs: Values, binary: str | bytes) -> onnx.ModelProto:
    """One EPContext node for a graph of a context binary: a file's name, or its content."""
    node = helper.make_node(
        "EPContext",
        [value.name for value in inputs],
        [value.name for value in outputs],
        name=graph,
        domain="com.microsoft",
        embed_mode=int(isinstance(binary, bytes)),
        ep_cache_context=binary,
        ep_sdk_version="2.51.0",
        source="Qnn",
    )
    # without an opset of com.microsoft, as the exporter writes it
    made = helper.make_graph([node], "qnn-onnx-model", inputs, outputs)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _position_processor(decoder: TinyDecoder) -> onnx.ModelProto:
    """A graph: mask (1, context) and positions (1, rows) -> additive mask (1, 1, rows, context), cosines, sines."""
    context = decoder.context
    constants = {
        "speeds": decoder._speeds.astype(np.float32)[None],
        "columns": np.arange(context, dtype=np.int64)[None],
        "context": np.array([context], np.int64),
        "one": np.array([1], np.int64),
        "zero": np.array(0, np.int64),
        "axes": np.array([0, 1], np.int64),
        "last": np.array([-1], np.int64),
        "open": np.array(0, np.float32),
        "shut": np.array(MASK.low, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["position_ids"], ["positions"], to=TensorProto.FLOAT),
        helper.make_node("Squeeze", ["positions", "zero_axis"], ["row_positions"]),
        helper.make_node("Unsqueeze", ["row_positions", "last"], ["column"]),
        helper.make_node("Mul", ["column", "speeds"], ["angles"]),
        helper.make_node("Cos", ["angles"], ["cosines"]),
        helper.make_node("Sin", ["angles"], ["sines"]),
        helper.make_node("Unsqueeze", ["cosines", "axes"], ["position_ids_cos_before_quantizer"]),
        helper.make_node("Unsqueeze", ["sines", "axes"], ["position_ids_sin_before_quantizer"]),
        # row r of a window of S rows attends to the marked columns up to context - S + r
        helper.make_node("Shape", ["position_ids"], ["rows"], start=1),
        helper.make_node("Squeeze", ["rows"], ["row_count"]),
        helper.make_node("Range", ["zero", "row_count", "step"], ["indices"]),
        helper.make_node("Sub", ["context", "rows"], ["first"]),
        helper.make_node("Add", ["indices", "first"], ["limits"]),
        helper.make_node("Unsqueeze", ["limits", "last"], ["limit"]),
        helper.make_node("LessOrEqual", ["columns", "limit"], ["causal"]),
        helper.make_node("Cast", ["attention_mask_before_processor"], ["marked"], to=TensorProto.BOOL),
        helper.make_node("And", ["causal", "marked"], ["visible"]),
        helper.make_node("Where", ["visible", "open", "shut"], ["mask"]),
        helper.make_node("Unsqueeze", ["mask", "axes"], ["attention_mask_before_quantizer"]),
    ]
    constants |= {"zero_axis": np.array([0], np.int64), "step": np.array(1, np.int64)}
    inputs = [
        helper.make_tensor_value_info("attention_mask_before_processor", TensorProto.INT32, [1, context]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT32, [1, "rows"]),
    ]
    return _model(nodes, inputs, _rows("_before_quantizer", TensorProto.FLOAT, decoder), constants)


def _quantizer(decoder: TinyDecoder) -> onnx.ModelProto:
    nodes, constants = [], {}
    for name, encoding in (("attention_mask", MASK), ("position_ids_cos", UNIT), ("position_ids_sin", UNIT)):
        constants |= {f"{name}_scale": np.array(encoding.scale), f"{name}_zero": np.array(encoding.zero)}
        inputs = [f"{name}_before_quantizer", f"{name}_scale", f"{name}_zero"]
        nodes.append(helper.make_node("QuantizeLinear", inputs, [name]))
    before = _rows("_before_quantizer", TensorProto.FLOAT, decoder)
    return _model(nodes, before, _rows("", TensorProto.UINT16, decoder), constants)


def _dequantizer(decoder: TinyDecoder) -> onnx.ModelProto:
    node = helper.make_node("DequantizeLinear", ["logits", "scale", "zero"], ["logits_dequantized"])
    shape = [1, "rows", decoder.vocab_size]
    return _model(
        [node],
        [helper.make_tensor_value_info("logits", TensorProto.UINT16, shape)],
        [helper.make_tensor_value_info("logits_dequantized", TensorProto.FLOAT, shape)],
        {"scale": np.array(LOGITS.scale), "zero": np.array(LOGITS.zero)},
    )


def _rows(suffix: str, kind: int, decoder: TinyDecoder) -> list[onnx.ValueInfoProto]:
    half = decoder.head_dim // 2
    return [
        helper.make_tensor_value_info(f"attention_mask{suffix}", kind, [1, 1, "rows", decoder.context]),
        helper.make_tensor_value_info(f"position_ids_cos{suffix}", kind, [1, 1, "rows", half]),
        helper.make_tensor_value_info(f"position_ids_sin{suffix}", kind, [1, 1, "rows", half]),
    ]


def _model(nodes: Any, inputs: Any, outputs: Any, constants: Any) -> onnx.ModelProto:
    held = [numpy_helper.from_array(value, name) for name, value in dict(constants).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def config_of(decoder: TinyDecoder, npu_stages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    quantised = ["attention_mask", "position_ids_cos", "position_ids_sin"]
    before = [f"{name}_before_quantizer" for name in quantised]
    stages = [
        _stage("position-processor", ["attention_mask_before_processor", "position_ids"], before),
        _stage("quantizer", before, quantised),
        *npu_stages,
        _stage("dequantizer", ["logits"], ["logits_dequantized"]),
    ]
    return {
        "model": {
            "type": "decoder-pipeline",
            "vocab_size": decoder.vocab_size,
            "context_length": decoder.context,
            "bos_token_id": 0,
            "eos_token_id": [decoder.stop_id],
            "pad_token_id": decoder.stop_id,
            "decoder": {
                "hidden_size": decoder.vocab_size,
                "num_attention_heads": decoder.heads,
                "num_key_value_heads": decoder.heads,
                "num_hidden_layers": 1,
                "head_size": decoder.head_dim,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask_before_processor",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_%d_in",
                    "past_value_names": "past_value_%d_in",
                },
                "outputs": {
                    "logits": "logits_dequantized",
                    "present_key_names": "past_key_%d_out",
                    "present_value_names": "past_value_%d_out",
                },
                "sliding_window": {"window_size": PROMPT_WIDTH, "pad_value": 128},
                "pipeline": stages,
            },
        },
        "search": {"max_length": decoder.context, "do_sample": False},
    }


def npu_stage(name: str, inputs: list[str], outputs: list[str], phase: str) -> dict[str, dict[str, Any]]:
    npu = {"backend_path": "QnnHtp.dll", "htp_performance_mode": "burst", "qnn_context_priority": "high"}
    options = {"provider_options": [{"qnn": npu | {"enable_htp_shared_memory_allocator": "1"}}]}
    run_on = {"run_on_prompt": phase == "prompt", "run_on_token_gen": phase == "token"}
    return {name: {**_stage(name, inputs, outputs)[name], "session_options": options, **run_on}}


def _stage(name: str, inputs: list[str], outputs: list[str]) -> dict[str, dict[str, Any]]:
    return {name: {"filename": f"{name}.onnx", "inputs": inputs, "outputs": outputs}}
