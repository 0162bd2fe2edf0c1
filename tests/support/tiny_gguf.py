"""The tiny model as a GGUF file with the names, rotary order and metadata of llama.cpp's converter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.support.tiny import CHATML, SPECIAL_TOKENS, tiny_weights, train_tokenizer

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}

#: format -> numbers of a block, bytes of a block, offsets of its float16 fields, which must be finite in random bytes
BLOCK_FORMATS = {
    **{"Q4_0": (32, 18, [0]), "Q4_1": (32, 20, [0, 2]), "Q5_0": (32, 22, [0]), "Q5_1": (32, 24, [0, 2])},
    **{"Q8_0": (32, 34, [0]), "IQ4_NL": (32, 18, [0]), "IQ4_XS": (256, 136, [0]), "Q2_K": (256, 84, [80, 82])},
    **{"Q3_K": (256, 110, [108]), "Q4_K": (256, 144, [0, 2]), "Q5_K": (256, 176, [0, 2]), "Q6_K": (256, 210, [208])},
}


def random_blocks(name: str, rows: int, blocks: int, offsets: Sequence[int] | None = None) -> NDArray[np.uint8]:
    """Random bytes of a format, uint8 (rows, bytes of a row). The values are about 1."""
    kind = gguf.GGMLQuantizationType[name]
    random = np.random.default_rng(1)
    raw = random.integers(0, 256, (rows, blocks, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for offset in BLOCK_FORMATS[name][2] if offsets is None else offsets:
        raw[..., offset : offset + 2] = random.standard_normal((rows, blocks, 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(rows, -1)


def write_tiny_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    stored_as: str = "F32",
    tied: bool = True,
    bias: bool = False,
    extra_tensors: dict[str, NDArray[np.float32]] | None = None,
    **metadata: Any,
) -> Path:
    """`stored_as`: the format of the matrices. `metadata`: replaces "key__with__dots", None omits the key."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (_metadata(architecture) | {name.replace("__", "."): v for name, v in metadata.items()}).items():
        _add(writer, key, value)
    kind = gguf.GGMLQuantizationType[stored_as]
    for name, values in tiny_weights(tied=tied, bias=bias).items():
        if architecture == "llama":
            values = _interleaved(name, values)
        if values.ndim == 1 or stored_as == "F32":
            writer.add_tensor(_gguf_name(name), values)
        else:
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(values, kind), raw_dtype=kind)
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    return _written(writer, path)


def split_gguf(path: Path, count: int) -> list[Path]:
    """The same model in `count` files, as llama.cpp's tool splits it: the first one has the metadata."""
    reader = gguf.GGUFReader(path)
    paths = [path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}.gguf") for number in range(count)]
    for number, part in enumerate(paths):
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            for key, field in reader.fields.items():
                if not key.startswith("GGUF.") and key != "general.architecture":
                    _add(writer, key, field.contents())
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::count]:
            writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
        _written(writer, part)
    return paths


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(architecture: str) -> dict[str, Any]:
    tokenizer = json.loads(train_tokenizer().to_str())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].get)
    return {
        f"{architecture}.block_count": 2,
        f"{architecture}.context_length": 512,
        f"{architecture}.embedding_length": 64,
        f"{architecture}.feed_forward_length": 128,
        f"{architecture}.attention.head_count": 4,
        f"{architecture}.attention.head_count_kv": 2,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL_TOKENS else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": CHATML,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case None:
            return
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _gguf_name(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _interleaved(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reorder rows: for each head, row i of its first half, then row i of its second half."""
    heads = 4 if "q_proj" in name else 2 if "k_proj" in name else 0
    if not heads:
        return values
    result = np.empty_like(values)
    size = len(values) // heads
    for head in range(heads):
        block = values[head * size : (head + 1) * size]
        result[head * size : (head + 1) * size : 2] = block[: size // 2]
        result[head * size + 1 : (head + 1) * size : 2] = block[size // 2 :]
    return result
