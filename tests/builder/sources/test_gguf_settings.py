"""Metadata of GGUF files that is wrong, or that no graph has: one sentence each, which names the key or the tensor."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from gateway.builder.sources.detect import open_source
from gateway.errors import BundleError
from tests.support.tiny_gguf import write_tiny_gguf

_TOKENIZER_KEYS = (
    *("model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_space_prefix"),
    *(f"{name}_token_id" for name in ("bos", "eos", "unknown", "padding", "eot")),
)


def refusal(path: Path, **metadata: Any) -> str:
    with pytest.raises(BundleError) as caught:
        open_source(write_tiny_gguf(path / "tiny.gguf", **metadata))
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", [2, 3]),
        ("block_count", 1 << 20),
        ("context_length", 0),
        ("context_length", (1 << 32) - 1),
        ("embedding_length", 0),
        ("attention.head_count", 0),
        ("attention.head_count_kv", 0),
        ("attention.head_count_kv", "two"),
        ("attention.key_length", 0),
        ("feed_forward_length", [0, 0]),
        ("attention.layer_norm_rms_epsilon", "small"),
        ("rope.freq_base", [1.0]),
        ("rope.dimension_count", "x"),
        ("rope.dimension_count", math.inf),
        ("attention.layer_norm_rms_epsilon", math.nan),
    ],
)
def test_wrong_value_is_one_sentence(tmp_path: Path, key: str, value: Any) -> None:
    message = refusal(tmp_path, **{f"llama__{key.replace('.', '__')}": value})
    assert message.startswith(("tiny.gguf has a value of the wrong kind in its metadata (", "tiny.gguf has layers of"))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("embedding_length", 96, "embed_tokens.weight has 384 x 64 numbers, and its metadata says 384 x 96"),
        (
            "attention.head_count",
            8,
            "self_attn.k_proj.weight has 32 x 64 numbers, and its metadata says 16 x 64",
        ),
        (
            "attention.head_count_kv",
            4,
            "self_attn.k_proj.weight has 32 x 64 numbers, and its metadata says 64 x 64",
        ),
        (
            "attention.key_length",
            32,
            "self_attn.q_proj.weight has 64 x 64 numbers, and its metadata says 128 x 64",
        ),
        (
            "feed_forward_length",
            96,
            "mlp.gate_proj.weight has 128 x 64 numbers, and its metadata says 96 x 64",
        ),
    ],
)
def test_size_that_the_tensors_do_not_have_is_one_sentence(tmp_path: Path, key: str, value: int, sentence: str) -> None:
    values = {"llama__attention__value_length": value} if key == "attention.key_length" else {}
    message = refusal(tmp_path, **{f"llama__{key.replace('.', '__')}": value} | values)
    assert (
        message.startswith("tiny.gguf: model.")
        and f"{sentence}. " in message
        and message.endswith("Use another file of the model.")
    )


def test_more_layers_than_the_file_has_are_refused_when_they_are_read(tmp_path: Path) -> None:
    source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf", llama__block_count=1024))
    with pytest.raises(BundleError, match=r"tiny\.gguf has no tensor model\.layers\.2\."):
        source.tensor("model.layers.2.input_layernorm.weight")


def test_architecture_that_is_no_text_is_refused(tmp_path: Path) -> None:
    assert "architecture '5' are not supported" in refusal(tmp_path, general__architecture=5)


def test_heads_of_another_shape_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, llama__attention__value_length=8)
    assert "has heads with keys of 16 numbers and values of 8 (llama.attention)" in message
    message = refusal(tmp_path, llama__rope__dimension_count=8)
    assert message.startswith("tiny.gguf rotates 8 of 16 numbers of a head (llama.rope.dimension_count)")


def test_windows_of_a_family_without_windows_are_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, architecture="granite", granite__attention__sliding_window=64)
    assert message.startswith("tiny.gguf has layers that see only 64 tokens (granite.attention.sliding_window)")


def test_windows_of_a_file_are_those_of_the_graph(tmp_path: Path) -> None:
    def windows(**metadata: Any) -> tuple[int, ...]:
        named = {f"llama__attention__{key}": value for key, value in metadata.items()}
        return open_source(write_tiny_gguf(tmp_path / "tiny.gguf", **named)).config.windows

    assert windows() == () == windows(sliding_window=0) == windows(sliding_window=512)
    assert windows(sliding_window=64) == (64, 64)
    assert windows(sliding_window=64, sliding_window_pattern=[True, False]) == (64, 0)


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "final_logit_softcapping", "attention.clamp_kqv"])
def test_steps_that_no_graph_has_are_refused(tmp_path: Path, key: str) -> None:
    message = refusal(tmp_path, **{f"llama__{key.replace('.', '__')}": 30.0})
    assert message == f"tiny.gguf has llama.{key}, which is not supported. Use another model."
    open_source(write_tiny_gguf(tmp_path / "tiny.gguf", **{f"llama__{key.replace('.', '__')}": 0.0}))


@pytest.mark.parametrize(("kind", "value"), [("gpt2", 1.5), ("gpt2", "text"), ("llama", [1, 2])])
def test_tokenizer_metadata_of_another_kind_is_one_sentence(tmp_path: Path, kind: str, value: Any) -> None:
    """Each key in turn: it is used, ignored, or refused with its name."""
    refused = []
    for key in (*_TOKENIZER_KEYS, "chat_template", "chat_templates"):
        name = f"tokenizer.{key}" if key.startswith("chat") else f"tokenizer.ggml.{key}"
        metadata = {"tokenizer__ggml__model": kind} | {name.replace(".", "__"): value}
        try:
            source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf", **metadata))
            source.tokenizer_json()
            source.tokenizer_config()
        except BundleError as error:
            assert "\n" not in error.message and len(error.message) < 600
            refused.append(key)
    assert {"bos_token_id", "pre", "tokens", "add_bos_token"} <= set(refused)


def test_token_that_does_not_exist_is_no_special_token(tmp_path: Path) -> None:
    keys = ("bos", "eos", "unknown", "padding", "eot")
    metadata = {f"tokenizer__ggml__{key}_token_id": 4000 for key in keys}
    source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf", **metadata))
    assert source.config.eos_ids == (0, 2) and source.config.bos_id is None and source.config.pad_id is None
    assert not {"bos_token", "eos_token", "unk_token", "pad_token"} & set(source.tokenizer_config())
    source.tokenizer_json()
