"""Writes bundles whose graphs for the NPU compute nothing: what remains of a step is the work of the host.

The inputs, the outputs and their shapes are those of real bundles. The layouts are that of our builder (the graphs
write the cache in place) and that of Genie bundles (they return the new rows, and the host writes the cache). The CPU
provider runs all graphs: `open_static_decoder(folder, provider="cpu")`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gateway.builder.graphs.quantise import BLOCK
from gateway.builder.graphs.static import PROMPT, STEP, Part, split
from gateway.builder.graphs.static_layout import StaticLayout
from gateway.builder.graphs.static_tables import write_embeddings_and_head
from gateway.builder.sources.source import Blocks, TransformerConfig
from gateway.bundles.static_pipeline import NPU_HEAD
from gateway.qnn.binary_info import Tensor
from gateway.qnn.chains import COSINES, IDS, LOGITS, MASK, SINES
from gateway.worker.decoders.static.host_graphs import LOGITS_FLOAT, MASK_ONES, POSITIONS, input_graph, logits_graph

Array = NDArray[Any]
_EMPTY = 128  # the code of zero in a cache of 8 bits


class Shape(Struct, frozen=True, kw_only=True):
    """The sizes of a model and of its graphs."""

    layers: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    context: int
    width: int
    parts: int

    def split(self) -> list[Part]:
        return split(self.layers, self.parts)


LLAMA_3B = Shape(layers=28, kv_heads=8, head_dim=128, hidden=3072, vocab=128256, context=4096, width=128, parts=3)


def write_in_place(folder: Path, shape: Shape, logits: Array) -> Path:
    """Our builder's layout, with small graphs in place of the embedding and the head.

    Args:
        logits: of every token, float32 (vocab,).
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout = StaticLayout(parts=shape.split(), contexts=[shape.context], widths={PROMPT: shape.width, STEP: 1}, soc=60)
    config = _config(shape, layout.decoder((PROMPT, STEP), shape.context))
    (folder / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    hidden: list[int | str] = [1, "rows", shape.hidden]
    row = {"row": np.zeros((1, 1, shape.hidden), np.float16), "vocab": logits.astype(np.float16)[None, None]}
    _save(
        folder / "embeddings.onnx",
        [helper.make_node("Shape", ["input_ids"], ["size"], start=1), *_repeated("row", "input_hidden_states")],
        [_value("input_ids", TensorProto.INT64, [1, "rows"])],
        [_value("input_hidden_states", TensorProto.FLOAT16, hidden)],
        {"row": row["row"], "one": np.array([1]), "last": np.array([shape.hidden])},
    )
    nodes = [helper.make_node("Shape", ["output_hidden_states"], ["size"], start=1, end=2)]
    nodes += _repeated("vocab", "repeated")
    _save(
        folder / "lm_head.onnx",
        [*nodes, helper.make_node("Cast", ["repeated"], ["logits"], to=TensorProto.FLOAT)],
        [_value("output_hidden_states", TensorProto.FLOAT16, hidden)],
        [_value("logits", TensorProto.FLOAT, [1, "rows", shape.vocab])],
        {"vocab": row["vocab"], "one": np.array([1]), "last": np.array([shape.vocab])},
    )
    for name, width in ((PROMPT, shape.width), (STEP, 1)):
        for part in shape.split():
            _save_in_place(folder / f"{name}{part.suffix}_ctx.onnx", shape, part, width)
    return folder


def write_npu_head(folder: Path, shape: Shape, logits: Array, rows: int = 8) -> None:
    """A head for the NPU, next to that for the CPU."""
    _save(
        folder / NPU_HEAD,
        [helper.make_node("Identity", ["vocab"], ["logits"])],
        [_value("output_hidden_states", TensorProto.FLOAT16, [1, rows, shape.hidden])],
        [_value("logits", TensorProto.FLOAT16, [1, rows, shape.vocab])],
        {"vocab": np.broadcast_to(logits.astype(np.float16), (1, rows, shape.vocab))},
    )


def write_real_tables(folder: Path, shape: Shape) -> None:
    """The embedding and the head for the CPU as our builder writes them, with random weights."""
    source: Any = _RandomTables(shape)
    write_embeddings_and_head(source, folder, "int4")


class _RandomTables:
    """What `write_embeddings_and_head` needs of a ModelSource."""

    def __init__(self, shape: Shape) -> None:
        self.config = TransformerConfig(
            architecture="llama",
            layers=shape.layers,
            hidden=shape.hidden,
            heads=shape.kv_heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            ffn=shape.hidden,
            vocab=shape.vocab,
            rms_eps=1e-5,
            ropes=(),
            context_length=shape.context,
            tied_embeddings=True,
            eos_ids=(shape.vocab - 1,),
        )

    def tensor(self, name: str) -> Array:
        return np.ones(self.config.hidden, np.float32)

    def blocks(self, name: str) -> Blocks:
        shape = self.config.vocab, self.config.hidden // BLOCK
        codes = np.frombuffer(np.random.default_rng(0).bytes(self.config.vocab * self.config.hidden), np.int8)
        scale = np.full(shape, 1e-4, np.float32)
        return Blocks(bits=8, scale=scale, minimum=np.zeros_like(scale), quants=codes.reshape(*shape, BLOCK))


def _repeated(row: str, output: str) -> list[onnx.NodeProto]:
    """(1, 1, n) -> (1, rows, n), for `size` = [rows]."""
    return [
        helper.make_node("Concat", ["one", "size", "last"], [f"{output}_shape"], axis=0),
        helper.make_node("Expand", [row, f"{output}_shape"], [output]),
    ]


def _save_in_place(path: Path, shape: Shape, part: Part, width: int) -> None:
    cache = [shape.kv_heads, shape.context, shape.head_dim]
    names = [f"{kind}_{index}" for index in part.layers for kind in ("keys", "values")]
    hidden = [1, width, shape.hidden]
    _save(
        path,
        [
            helper.make_node("Identity", [part.input], [part.output]),
            *(helper.make_node("Identity", [f"past_{name}"], [f"present_{name}"]) for name in names),
        ],
        [
            _value(part.input, TensorProto.FLOAT16, hidden),
            _value("past_seq_len", TensorProto.INT32, [1, 1]),
            _value("total_seq_len", TensorProto.INT32, [1]),
            *(_value(f"past_{name}", TensorProto.FLOAT16, [1, *cache]) for name in names),
        ],
        [
            _value(part.output, TensorProto.FLOAT16, hidden),
            *(_value(f"present_{name}", TensorProto.FLOAT16, [1, *cache]) for name in names),
        ],
        {},
    )


def write_rows_returned(folder: Path, shape: Shape, logits: Array) -> Path:
    """The layout of a Genie bundle, with our own graphs for the host's work.

    Args:
        logits: of every token, float32 (vocab,).
    """
    folder.mkdir(parents=True, exist_ok=True)
    scale = float(np.ptp(logits)) / 65535 or 1.0
    zero = int(np.clip(np.rint(-logits.min() / scale), 0, 65535))
    codes = np.clip(np.rint(logits / scale) + zero, 0, 65535).astype(np.uint16)
    half = shape.head_dim // 2
    angles = np.outer(np.arange(shape.context), 0.5 ** np.arange(half))
    onnx.save(
        input_graph(
            Tensor(name=MASK, shape=(1, 1, 1, shape.context), dtype="uint16", scale=0.001, zero_point=65535),
            Tensor(name=COSINES, shape=(1, 1, 1, half), dtype="uint16", scale=2 / 65535, zero_point=32768),
            Tensor(name=SINES, shape=(1, 1, 1, half), dtype="uint16", scale=2 / 65535, zero_point=32768),
            (np.cos(angles), np.sin(angles)),
        ),
        folder / "host_inputs.onnx",
    )
    tensor = Tensor(name=LOGITS, shape=(1, 1, shape.vocab), dtype="uint16", scale=scale, zero_point=zero)
    onnx.save(logits_graph(tensor), folder / "host_logits.onnx")
    stages: list[dict[str, Any]] = [
        {"inputs": {"filename": "host_inputs.onnx", "inputs": [MASK_ONES, POSITIONS], "outputs": [MASK]}}
    ]
    for phase, width in (("prompt", shape.width), ("token", 1)):
        for part in shape.split():
            name = f"{phase}_{part.index + 1}_of_{part.count}"
            _save_rows_returned(folder / f"{name}.onnx", shape, part, width, codes)
            npu = {"provider_options": [{"qnn": {"backend_path": "QnnHtp.dll"}}]}
            runs = {"run_on_prompt": phase == "prompt", "run_on_token_gen": phase == "token"}
            stages.append({name: {"filename": f"{name}.onnx", "session_options": npu, **runs}})
    stages.append({"logits": {"filename": "host_logits.onnx", "inputs": [LOGITS], "outputs": [LOGITS_FLOAT]}})
    decoder = {
        "inputs": {
            "input_ids": IDS,
            "attention_mask": MASK_ONES,
            "position_ids": POSITIONS,
            "past_key_names": "past_key_%d_in",
            "past_value_names": "past_value_%d_in",
        },
        "outputs": {
            "logits": LOGITS_FLOAT,
            "present_key_names": "past_key_%d_out",
            "present_value_names": "past_value_%d_out",
        },
        "sliding_window": {"window_size": shape.width, "pad_value": _EMPTY},
        "pipeline": stages,
    }
    (folder / "genai_config.json").write_text(json.dumps(_config(shape, decoder)), encoding="utf-8")
    return folder


def _save_rows_returned(path: Path, shape: Shape, part: Part, width: int, codes: Array) -> None:
    heads, size, old = shape.kv_heads, shape.head_dim, shape.context - width
    is_first, is_last = part.index == 0, part.index == part.count - 1
    constants: dict[str, Array] = {
        "keys": np.full((heads, 1, size, width), 1, np.uint8),
        "values": np.full((heads, 1, width, size), 1, np.uint8),
        "hidden": np.zeros((1, width, shape.hidden), np.uint16),
    }
    inputs = [_value(IDS, TensorProto.INT32, [1, width])]
    if not is_first:
        inputs = [_value(f"hidden_{part.index}", TensorProto.UINT16, [1, width, shape.hidden])]
    inputs += [
        _value(MASK, TensorProto.UINT16, [1, 1, width, shape.context]),
        _value(COSINES, TensorProto.UINT16, [1, 1, width, size // 2]),
        _value(SINES, TensorProto.UINT16, [1, 1, width, size // 2]),
    ]
    if is_last:
        constants["codes"] = np.broadcast_to(codes, (1, width, shape.vocab))
        nodes = [helper.make_node("Identity", ["codes"], [LOGITS])]
        outputs = [_value(LOGITS, TensorProto.UINT16, [1, width, shape.vocab])]
    else:
        nodes = [helper.make_node("Identity", ["hidden"], [f"hidden_{part.index + 1}"])]
        outputs = [_value(f"hidden_{part.index + 1}", TensorProto.UINT16, [1, width, shape.hidden])]
    for index in part.layers:
        key, value = f"past_key_{index}", f"past_value_{index}"
        inputs.append(_value(f"{key}_in", TensorProto.UINT8, [heads, 1, size, old]))
        inputs.append(_value(f"{value}_in", TensorProto.UINT8, [heads, 1, old, size]))
        nodes += [
            helper.make_node("Identity", ["keys"], [f"{key}_out"]),
            helper.make_node("Identity", ["values"], [f"{value}_out"]),
        ]
        outputs.append(_value(f"{key}_out", TensorProto.UINT8, [heads, 1, size, width]))
        outputs.append(_value(f"{value}_out", TensorProto.UINT8, [heads, 1, width, size]))
    _save(path, nodes, inputs, outputs, constants)


def _config(shape: Shape, decoder: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {
            "type": "decoder-pipeline",
            "vocab_size": shape.vocab,
            "context_length": shape.context,
            "bos_token_id": 0,
            "eos_token_id": [shape.vocab - 1],
            "pad_token_id": shape.vocab - 1,
            "decoder": {
                "num_hidden_layers": shape.layers,
                "num_key_value_heads": shape.kv_heads,
                "head_size": shape.head_dim,
                **decoder,
            },
        },
        "search": {},
    }


def _value(name: str, kind: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _save(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, Array],
) -> None:
    used = {name for node in nodes for name in node.input}
    held = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
