"""GGUF files of random weights with the true shape of Llama 3.2 1B and 3B, to measure what a model of that size costs.

    python benchmarks/random_gguf.py 1b|3b q4_0|q4_k_m

Writes models/bench/SIZE-FORMAT.gguf and its bundle. The formats of the matrices are those that llama.cpp's quantisation
chooses. The tokenizer is SmolLM2's, with more merges up to Llama's vocabulary; no text uses them. Scales are as in a
trained model: activations stay near 1, and logits have a standard deviation near 1. The text of these models is random.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from numpy.typing import NDArray
from random_blocks import random_blocks
from weights import MODELS, bundle_of, gguf_file

from gateway.config.tables import LocalModel

VOCABULARY = 128_256
FFN = 8192
#: size -> layers, hidden size, heads, KV heads, size of a head
SHAPES = {"1b": (16, 2048, 32, 8, 64), "3b": (28, 3072, 24, 8, 128)}
FORMATS = {"q4_0": Kind.Q4_0, "q4_k_m": Kind.Q4_K}
FOLDER = "bench"
#: Factors of the weights' standard deviation. With weak attention the text repeats itself, and prompt lookup gains.
GAINS = {"attn_q": 2.0, "attn_k": 2.0, "attn_output": 4.0}
#: In each piece of a matrix that is made and written at once
PIECE_ROWS = 4096


def random_gguf(size: str, weights: str) -> Path:
    """The file, written if it does not exist."""
    path = MODELS / FOLDER / f"{size}-{weights}.gguf"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            unfinished = Path(scratch, path.name)
            _write(size, FORMATS[weights], unfinished, gguf_file(Path(scratch)))
            unfinished.replace(path)
    return path


def random_bundle(size: str, weights: str) -> Path:
    """The folder of the bundle that the builder makes of the file."""
    path = random_gguf(size, weights)
    return bundle_of(LocalModel(path=f"{FOLDER}/{path.stem}", source=f"{FOLDER}/{path.name}"))


def _write(size: str, kind: Kind, path: Path, tokenizer: Path) -> None:
    writer = GGUFWriter(path, "llama")
    _write_settings(writer, size)
    _copy_tokenizer(GGUFReader(tokenizer), writer)
    matrices = dict(_matrices(size, kind))
    for name, (rows, columns, stored) in matrices.items():
        block, block_bytes = GGML_QUANT_SIZES[stored]
        shape = (rows, columns // block * block_bytes) if block > 1 else (columns,)
        dtype = np.dtype(np.uint8 if block > 1 else np.float32)
        writer.add_tensor_info(name, shape, dtype, rows * columns // block * block_bytes, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.Generator(np.random.SFC64(0))
    for name, (rows, columns, stored) in matrices.items():
        writer.write_tensor_data(_values(random, rows, columns, stored, GAINS.get(name.split(".")[-2], 1.0)))
    writer.close()


def _write_settings(writer: GGUFWriter, size: str) -> None:
    layers, hidden, heads, kv_heads, head = SHAPES[size]
    writer.add_name(f"Random {size}")
    writer.add_block_count(layers)
    writer.add_context_length(131_072)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(500_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_quantization_version(2)


def _copy_tokenizer(small: GGUFReader, writer: GGUFWriter) -> None:
    """With more words: pairs of words with a space before each, which the pre-tokenizer keeps apart."""
    words = small.fields["tokenizer.ggml.tokens"].contents()
    kinds = small.fields["tokenizer.ggml.token_type"].contents()
    merges = small.fields["tokenizer.ggml.merges"].contents()
    more = list(islice(_pairs(words), VOCABULARY - len(words)))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words + ["".join(pair) for pair in more])
    writer.add_token_types(kinds + [1] * len(more))
    writer.add_token_merges(merges + [" ".join(pair) for pair in more])
    writer.add_add_bos_token(False)
    for key in ("bos", "eos", "unknown", "padding"):
        writer.add_uint32(f"tokenizer.ggml.{key}_token_id", small.fields[f"tokenizer.ggml.{key}_token_id"].contents())
    writer.add_chat_template(small.fields["tokenizer.chat_template"].contents())


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    spaced = [word for word in words if word[0] == "Ġ" and len(word) > 3 and word[1:].isalpha()]
    known = set(words)
    for distance in range(1, len(spaced)):
        for first, second in zip(spaced, spaced[distance:], strict=False):
            if first + second not in known:
                known.add(first + second)
                yield first, second


def _matrices(size: str, kind: Kind) -> Iterator[tuple[str, tuple[int, int, Kind]]]:
    """Name, rows, columns and number format of each tensor, in llama.cpp's order."""
    layers, hidden, heads, kv_heads, head = SHAPES[size]
    yield "token_embd.weight", (VOCABULARY, hidden, Kind.Q6_K)
    for layer in range(layers):
        better = Kind.Q6_K if kind is Kind.Q4_K and _gets_more_bits(layer, layers) else kind
        yield f"blk.{layer}.attn_norm.weight", (1, hidden, Kind.F32)
        yield f"blk.{layer}.ffn_down.weight", (hidden, FFN, better)
        yield f"blk.{layer}.ffn_gate.weight", (FFN, hidden, kind)
        yield f"blk.{layer}.ffn_up.weight", (FFN, hidden, kind)
        yield f"blk.{layer}.ffn_norm.weight", (1, hidden, Kind.F32)
        yield f"blk.{layer}.attn_k.weight", (kv_heads * head, hidden, kind)
        yield f"blk.{layer}.attn_output.weight", (hidden, heads * head, kind)
        yield f"blk.{layer}.attn_q.weight", (heads * head, hidden, kind)
        yield f"blk.{layer}.attn_v.weight", (kv_heads * head, hidden, better)
    yield "output_norm.weight", (1, hidden, Kind.F32)


def _gets_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's choice of layers for Q4_K_M: the first and last eighth, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _values(random: np.random.Generator, rows: int, columns: int, stored: Kind, gain: float) -> NDArray[np.generic]:
    if stored is Kind.F32:
        return random.uniform(0.8, 1.2, columns).astype(np.float32)
    pieces = range(0, rows, PIECE_ROWS)
    return np.concatenate(
        [random_blocks(random, stored, min(PIECE_ROWS, rows - first), columns, gain) for first in pieces]
    )


if __name__ == "__main__":
    print(random_bundle(*sys.argv[1:]))
