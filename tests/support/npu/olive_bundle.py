"""Writes a bundle in the form that Olive, the AI Toolkit and Foundry Local publish.

Differences from `windows_ml_bundle`: hidden states and caches are float32. The number of cache rows is open, and
`context_length` is that of the original model. GroupQueryAttention runs on the CPU between several compiled networks,
whose first one names the binary. Both phases share one binary. The folder has all files of the tokenizer.

There are two generations of names:

    olive    embeddings.onnx, context_ctx.onnx, iterator_ctx.onnx, lm_head.onnx, past_key_values.%d.key
    foundry  NAME_embeddings_quant_v1.0.onnx, NAME_ctx_v1.0.onnx_ctx.onnx, NAME_iter_v1.0.onnx_ctx.onnx, past_keys_%d
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import onnx
from msgspec import Struct
from tokenizers import Tokenizer

from gateway.builder.graphs.static import Part, split, write_part
from gateway.builder.graphs.static_tables import write_embeddings_and_head
from gateway.builder.sources.source import ModelSource
from tests.support.npu.shared_binary import compile_into_one

WIDTH, MODEL_CONTEXT = 8, 512  # tokens of a prompt window; `context_length` of the bundle

#: `none`: ONNX graphs. `islands`: networks compiled for the NPU around attention on the CPU.
Compiled = Literal["none", "islands"]


class Names(Struct, frozen=True, kw_only=True):
    """The names of one generation. `stages` are in the order embeddings, context, iterator, head."""

    stages: tuple[str, str, str, str]
    files: tuple[str, str, str, str]
    binary: str
    past: str  # of a cache tensor; `%d`: the layer, `{}`: key or value
    present: str
    plural: bool  # "keys" instead of "key"


OLIVE = Names(
    stages=("embeddings", "context_ctx", "iterator_ctx", "lm_head"),
    files=("embeddings.onnx", "context_ctx.onnx", "iterator_ctx.onnx", "lm_head.onnx"),
    binary="context_ctx_qnn.bin",
    past="past_key_values.%d.{}",
    present="present.%d.{}",
    plural=False,
)
FOUNDRY = Names(
    stages=("embedding", "prompt-processor", "token-generator", "transformer-head"),
    files=(
        "tiny_embeddings_quant_v1.0.onnx",
        "tiny_ctx_v1.0.onnx_ctx.onnx",
        "tiny_iter_v1.0.onnx_ctx.onnx",
        "tiny_head_quant_v1.0.onnx",
    ),
    binary="tiny_cb_1.bin",
    past="past_{}_%d",
    present="present_{}_%d",
    plural=True,
)


def write_bundle(
    folder: Path, source: ModelSource, tokenizer: Path, *, compiled: Compiled, names: Names = OLIVE, parts: int = 1
) -> Path:
    """Write the bundle.

    Args:
        tokenizer: a folder with tokenizer.json and tokenizer_config.json.
        parts: graphs that the layers are split into, each with a binary: context_0_ctx.onnx, context_1_ctx.onnx, ...
    """
    work = folder / "work"
    work.mkdir(parents=True)
    write_embeddings_and_head(source, work, "fp32")
    phases: tuple[list[_Stage], list[_Stage]] = ([], [])
    for part in split(source.config.layers, parts):
        for stages, stage in zip(phases, _write_part(source, folder, part, names, compiled), strict=True):
            stages.append(stage)
    for file in work.glob("*.data"):
        shutil.move(file, folder / file.name)
    for name, index in (("embeddings", 0), ("lm_head", -1)):
        shutil.move(work / f"{name}.onnx", folder / names.files[index])
    shutil.rmtree(work)
    _write_tokenizer(tokenizer, folder)
    config = _config(source, names, [*phases[0], *phases[1]])
    (folder / "genai_config.json").write_text(json.dumps(config, indent=4), encoding="utf-8")
    return folder


class _Stage(Struct, frozen=True):
    """One graph for the NPU. `phase`: 1 prompt, 2 single steps."""

    name: str
    file: str
    part: Part
    phase: int


def _write_part(source: ModelSource, folder: Path, part: Part, names: Names, compiled: Compiled) -> list[_Stage]:
    """Write the graphs of both phases."""
    work, widths = folder / "work", {"context": WIDTH, "iterator": 1}
    paths = list(write_part(source, work, part, widths=widths, contexts=[MODEL_CONTEXT], precision="fp32").values())
    for path in paths:
        _rename(path, names)
    if compiled == "islands":
        compile_into_one(paths, folder / _of_part(names.binary, part))
        (work / f"layers{part.suffix}.onnx.data").unlink()  # the constants are in the binary
    stages = []
    for phase, path in enumerate(paths, start=1):
        name, file = (_of_part(text, part) for text in (names.stages[phase], names.files[phase]))
        shutil.move(path, folder / file)
        stages.append(_Stage(name, file, part, phase))
    return stages


def _of_part(name: str, part: Part) -> str:
    if part.count == 1:
        return name
    return re.sub("context|iterator", lambda found: f"{found[0]}_{part.index}", name)


def _rename(path: Path, names: Names) -> None:
    """Give the caches the names of the generation, and leave the number of their rows open."""
    model = onnx.load(path, load_external_data=False)
    graph, new = model.graph, {}
    for value in (*graph.input, *graph.output):
        side, _, rest = value.name.partition("_")
        kind, _, index = rest.rpartition("_")
        if kind in ("keys", "values"):
            new[value.name] = _cache_name(names, side, kind, int(index))
            value.name = new[value.name]
            value.type.tensor_type.shape.dim[2].dim_param = f"{'past' if side == 'past' else 'total'}_sequence_length"
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    onnx.save(model, path)


def _cache_name(names: Names, side: str, kind: str, layer: int | None) -> str:
    pattern = names.past if side == "past" else names.present
    name = pattern.format(kind if names.plural else kind.removesuffix("s"))
    return name if layer is None else name.replace("%d", str(layer))


def _write_tokenizer(source: Path, folder: Path) -> None:
    """The files of a Hugging Face tokenizer, of which the gateway reads the first two."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    content = json.loads(tokenizer.to_str())["model"]
    others = {
        "vocab.json": content["vocab"],
        "special_tokens_map.json": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
        "added_tokens.json": {"<|im_end|>": 2},
        "generation_config.json": {"eos_token_id": [2, 0]},
        "config.json": {"model_type": "llama"},
        "inference_model.json": {"Name": "tiny-qnn-npu", "PromptTemplate": {"prompt": "{Content}"}},
    }
    for name, value in others.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in content["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")


def _config(source: ModelSource, names: Names, npu_stages: Sequence[_Stage]) -> dict[str, Any]:
    config = source.config
    embeddings, *_, head = zip(names.stages, names.files, strict=True)
    hidden_in, hidden_out = "input_hidden_states", "output_hidden_states"
    npu = {"intra_op_num_threads": 2, "inter_op_num_threads": 1, "provider_options": [{"qnn": _OPTIONS}]}
    stages = {embeddings[0]: {"filename": embeddings[1], "inputs": ["input_ids"], "outputs": [hidden_in]}}
    for stage in npu_stages:
        past, present = (
            [_cache_name(names, side, kind, layer) for layer in stage.part.layers for kind in ("keys", "values")]
            for side in ("past", "present")
        )
        stages[stage.name] = {
            "filename": stage.file,
            "inputs": [stage.part.input, "past_seq_len", "total_seq_len", *past],
            "outputs": [stage.part.output, *present],
            "run_on_token_gen" if stage.phase == 1 else "run_on_prompt": False,
            "session_options": npu,
        }
    stages[head[0]] = {"filename": head[1], "inputs": [hidden_out], "outputs": ["logits"], "is_lm_head": True}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "head_size": config.head_dim,
        "hidden_size": config.hidden,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": _cache_name(names, "past", "keys", None),
            "past_value_names": _cache_name(names, "past", "values", None),
            "past_sequence_length": "past_seq_len",
            "total_sequence_length": "total_seq_len",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": _cache_name(names, "present", "keys", None),
            "present_value_names": _cache_name(names, "present", "values", None),
        },
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "num_key_value_heads": config.kv_heads,
        "sliding_window": {
            "window_size": WIDTH,
            "pad_value": 0,
            "alignment": "left",
            "slide_key_value_cache": False,
        },
        "pipeline": [stages] if names is OLIVE else [{name: stage} for name, stage in stages.items()],
    }
    model = {
        "bos_token_id": 1,
        "context_length": MODEL_CONTEXT,
        "decoder": decoder,
        "eos_token_id": list(config.eos_ids),
        "pad_token_id": 0,
        "type": "decoder-pipeline",
        "vocab_size": config.vocab,
    }
    return {"model": model, "search": _SEARCH | {"max_length": MODEL_CONTEXT}}


#: Paths and numbers of the machine where the bundle was made.
_OPTIONS = {
    "backend_path": r"C:\Users\author\olive\venv\Lib\site-packages\onnxruntime\capi\QnnHtp.dll",
    "htp_performance_mode": "burst",
    "htp_graph_finalization_optimization_mode": "3",
    "soc_model": "60",
    "enable_htp_weight_sharing": "1",
}
_SEARCH = {
    "do_sample": True,
    "past_present_share_buffer": True,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
    "repetition_penalty": 1.1,
}
