"""Writes a bundle in the layout of Windows ML, Olive and Foundry Local.

The stages are embeddings, context, iterator and lm_head. Hidden states between them are float32. The graphs write the
float16 cache in place.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx import TensorProto, helper

from gateway.builder.graphs.static import Part, write_part
from gateway.builder.graphs.static_tables import write_embeddings_and_head
from gateway.builder.sources.source import ModelSource
from gateway.qnn.compile import compile_graphs, compiled_name
from gateway.qnn.provider import emulated_npu

#: `none`: ONNX graphs. `whole`: one compiled network per graph. `cpu_attention`: attention runs on the CPU, between
#: several compiled networks.
Compiled = Literal["none", "whole", "cpu_attention"]


def write_bundle(folder: Path, source: ModelSource, *, compiled: Compiled, width: int = 8, context: int = 64) -> Path:
    folder.mkdir(parents=True)
    part = Part(index=0, count=1, layers=range(source.config.layers))
    write_embeddings_and_head(source, folder, "fp32")
    work = folder / "work"
    work.mkdir()
    written = write_part(
        source, work, part, widths={"context": width, "iterator": 1}, contexts=[context], precision="fp16"
    )
    graphs = list(written.values())
    for graph in graphs:
        _take_float32(graph)
    if compiled == "none":
        for path in work.iterdir():
            shutil.move(path, folder / path.name)
    else:
        _compile(graphs, folder, cpu_attention=compiled == "cpu_attention")
    shutil.rmtree(work)
    names = {graph.stem: graph.name if compiled == "none" else compiled_name(graph) for graph in graphs}
    config = _config(source, names, width, context)
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _take_float32(path: Path) -> None:
    """Make the hidden states of the graph's inputs and outputs float32, as in the published graphs."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    before = helper.make_node("Cast", ["input_hidden_states"], ["hidden_in"], name="cast_in", to=TensorProto.FLOAT16)
    after = helper.make_node("Cast", ["hidden_out"], ["output_hidden_states"], name="cast_out", to=TensorProto.FLOAT)
    for node in graph.node:
        node.input[:] = ["hidden_in" if name == "input_hidden_states" else name for name in node.input]
        node.output[:] = ["hidden_out" if name == "output_hidden_states" else name for name in node.output]
    graph.node.insert(0, before)
    graph.node.append(after)
    for value in (*graph.input, *graph.output):
        if "hidden_states" in value.name:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    onnx.save(model, path)


def _compile(graphs: list[Path], folder: Path, *, cpu_attention: bool) -> None:
    device = emulated_npu()
    assert device is not None
    if not cpu_attention:
        compile_graphs(graphs, folder, device)
        return
    affinity = graphs[0].with_name("affinity.json")
    affinity.write_text('{"op_type": {"GroupQueryAttention": "cpu"}}', encoding="utf-8")
    compile_graphs(graphs, folder, device, options={"op_affinity": str(affinity)}, cpu_fallback=True)


def _config(source: ModelSource, files: dict[str, str], width: int, context: int) -> dict[str, Any]:
    config = source.config
    cache = [f"{kind}_{index}" for index in range(config.layers) for kind in ("keys", "values")]
    npu = {"session_options": {"provider_options": [{"qnn": _OPTIONS}], "intra_op_num_threads": 2}}
    stages = [{"embeddings": _stage("embeddings.onnx", ["input_ids"], ["input_hidden_states"])}]
    for name, in_prompt in (("context", True), ("iterator", False)):
        inputs = ["input_hidden_states", "past_seq_len", "total_seq_len", *(f"past_{tensor}" for tensor in cache)]
        outputs = ["output_hidden_states", *(f"present_{tensor}" for tensor in cache)]
        phase = {"run_on_prompt": in_prompt, "run_on_token_gen": not in_prompt}
        stages.append({name: _stage(files[name], inputs, outputs) | phase | npu})
    stages.append({"lm_head": _stage("lm_head.onnx", ["output_hidden_states"], ["logits"]) | {"is_lm_head": True}})
    decoder = {
        "hidden_size": config.hidden,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "num_hidden_layers": config.layers,
        "head_size": config.head_dim,
        "inputs": {
            "input_ids": "input_ids",
            "past_key_names": "past_keys_%d",
            "past_value_names": "past_values_%d",
            "past_sequence_length": "past_seq_len",
            "total_sequence_length": "total_seq_len",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present_keys_%d",
            "present_value_names": "present_values_%d",
        },
        "sliding_window": {
            "window_size": width,
            "pad_value": 0,
            "alignment": "left",
            "slide_key_value_cache": False,
        },
        "pipeline": stages,
    }
    model = {
        "type": "decoder-pipeline",
        "vocab_size": config.vocab,
        "context_length": context,
        "eos_token_id": list(config.eos_ids),
        "pad_token_id": 0,
        "decoder": decoder,
    }
    return {"model": model, "search": {"max_length": context, "past_present_share_buffer": True, "top_k": 1}}


_OPTIONS = {
    "backend_path": "QnnHtp.dll",
    "htp_performance_mode": "burst",
    "htp_graph_finalization_optimization_mode": "3",
    "soc_model": "60",
}


def _stage(filename: str, inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    return {"filename": filename, "inputs": inputs, "outputs": outputs}
