"""A tiny model that builds in a second: seeded random weights, a trained tokenizer, ChatML.

Its answers have no meaning, but are always the same. The folder has the Hugging Face format, and the product builds
the bundle from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from gateway.builder.build import build_bundle

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VOCABULARY = 384

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CORPUS = (
    "The quick brown fox jumps over the lazy dog. What is the capital of France? Paris is the capital of France.",
    "user system assistant tool: you are a helpful assistant. Hello, how are you today? I am well, thank you!",
    'def add(a, b):\n    return a + b\n{"name": "value", "numbers": [1, 2, 3]}',
)


def write_tiny_folder(
    folder: Path,
    *,
    architecture: str = "llama",
    layers: int = 2,
    tied: bool = True,
    bias: bool = False,
    heads: int = 4,
    intermediate: int = 128,
    context: int = 512,
    shards: int = 1,
    dtype: Any = np.float32,
    seed: int = 0,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    **config: Any,
) -> Path:
    """A Hugging Face folder: hidden 64, heads of 16, 2 kv heads, 384 tokens. `config` adds to its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "model_type": architecture,
        "num_hidden_layers": layers,
        "hidden_size": 64,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "head_dim": 16,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    _write_json(folder / "config.json", settings | config)
    _write_json(folder / "generation_config.json", {"eos_token_id": [2, 0], "temperature": 0.7, "top_p": 0.9})
    _write_json(
        folder / "tokenizer_config.json",
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHATML},
    )
    (folder / "tokenizer.json").write_text(train_tokenizer(special_tokens).to_str(), encoding="utf-8")
    tensors = tiny_weights(layers=layers, tied=tied, bias=bias, heads=heads, intermediate=intermediate, seed=seed)
    weights = {name: values.astype(dtype) for name, values in tensors.items()}
    _write_shards(folder, weights, shards)
    return folder


def build_tiny(folder: Path, **options: Any) -> Path:
    """The bundle of a tiny model, at `folder`/bundle."""
    return build_bundle(write_tiny_folder(folder / "source", **options), folder / "bundle", progress=lambda *_: None)


def train_tokenizer(special_tokens: Sequence[str] = SPECIAL_TOKENS) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=list(special_tokens),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    return tokenizer


def tiny_weights(
    *, layers: int = 2, tied: bool = True, bias: bool = False, heads: int = 4, intermediate: int = 128, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    """The tensors by their Hugging Face names."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        return random.standard_normal((rows, columns), np.float32) * np.float32(2 / np.sqrt(columns))

    def vector(size: int) -> NDArray[np.float32]:
        return 1 + random.standard_normal(size, np.float32) * np.float32(0.1)

    weights = {"model.embed_tokens.weight": matrix(VOCABULARY, 64) * 2, "model.norm.weight": vector(64)}
    for index in range(layers):
        prefix = f"model.layers.{index}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}{name}.weight"] = vector(64)
        for name, rows, columns in (("q", 16 * heads, 64), ("k", 32, 64), ("v", 32, 64), ("o", 64, 16 * heads)):
            weights[f"{prefix}self_attn.{name}_proj.weight"] = matrix(rows, columns)
            if bias and name != "o":
                weights[f"{prefix}self_attn.{name}_proj.bias"] = vector(rows)
        for name, rows, columns in (("gate", intermediate, 64), ("up", intermediate, 64), ("down", 64, intermediate)):
            weights[f"{prefix}mlp.{name}_proj.weight"] = matrix(rows, columns)
    return weights if tied else weights | {"lm_head.weight": matrix(VOCABULARY, 64) * 2}


def _write_shards(folder: Path, weights: dict[str, NDArray[Any]], shards: int) -> None:
    names = list(weights)
    if shards == 1:
        save_file(weights, folder / "model.safetensors")
        return
    placed = {name: f"model-{1 + index % shards:05}-of-{shards:05}.safetensors" for index, name in enumerate(names)}
    for file in set(placed.values()):
        save_file({name: weights[name] for name in names if placed[name] == file}, folder / file)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": placed})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
