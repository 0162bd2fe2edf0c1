"""Hugging Face folders: number types, shards, configs old and new, and mistakes in words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gateway.builder.loss.measure import text_ids
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import EMBEDDING, HEAD
from gateway.errors import BundleError
from tests.support.tiny import CHATML, tiny_weights, write_tiny_folder

_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_of_each_float_type_and_shard_count(tmp_path: Path, dtype: Any, shards: int) -> None:
    source = open_source(write_tiny_folder(tmp_path / "m", dtype=dtype, shards=shards, tied=False, bias=True))
    for name, values in tiny_weights(tied=False, bias=True).items():
        assert source.has(name)
        np.testing.assert_array_equal(source.tensor(name), values.astype(dtype).astype(np.float32), err_msg=name)
        assert source.blocks(name) is None


def test_config_sampling_defaults_and_template_are_read(tmp_path: Path) -> None:
    source = open_source(write_tiny_folder(tmp_path / "m"))
    config = source.config
    assert (config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim) == (2, 64, 4, 2, 16)
    assert config.tied_embeddings and not source.has(HEAD)
    assert config.eos_ids == (2, 0)  # generation_config.json goes before config.json
    assert (source.generation.temperature, source.generation.top_p, source.generation.top_k) == (0.7, 0.9, None)
    assert source.tokenizer_config()["chat_template"] == CHATML


def test_template_file_has_priority_over_tokenizer_config(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("ä {{ messages }}", encoding="utf-8")
    assert open_source(folder).tokenizer_config()["chat_template"] == "ä {{ messages }}"


def test_named_templates_of_every_layout_reach_the_bundle(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    config = {"chat_template": [*named, {"name": "rag", "template": "R"}]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert open_source(folder).tokenizer_config()["chat_template"] == named
    (folder / "chat_template.jinja").write_text("D", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("T", encoding="utf-8-sig")
    assert open_source(folder).tokenizer_config()["chat_template"] == named


def test_stored_head_of_tied_model_is_ignored(tmp_path: Path) -> None:
    source = open_source(write_tiny_folder(tmp_path / "m", tied=False, tie_word_embeddings=True))
    assert not source.has(HEAD)


def test_llama3_rotary_scaling_under_old_and_new_key(tmp_path: Path) -> None:
    old = write_tiny_folder(tmp_path / "old", rope_theta=500.0, rope_scaling=_LLAMA3)
    new = write_tiny_folder(tmp_path / "new", rope_theta=1.0, rope_parameters=_LLAMA3 | {"rope_theta": 500.0})
    speeds = open_source(old).config.ropes[0].inverse_frequencies(512)
    np.testing.assert_array_equal(speeds, open_source(new).config.ropes[0].inverse_frequencies(512))
    for pair, speed in enumerate(speeds):  # the published rule, written out case by case
        plain = 500.0 ** (-2 * pair / 16)
        wavelength = 2 * math.pi / plain
        if wavelength < 64 / 4:
            expected = plain
        elif wavelength > 64:
            expected = plain / 8
        else:
            smooth = (64 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert speed == pytest.approx(expected)
    assert len({speed * 500.0 ** (2 * pair / 16) for pair, speed in enumerate(speeds)}) > 2  # every case occurs


def test_linear_rotary_scaling_divides_frequencies(tmp_path: Path) -> None:
    scaled = open_source(write_tiny_folder(tmp_path / "m", rope_scaling={"type": "linear", "factor": 4.0})).config
    np.testing.assert_allclose(scaled.ropes[0].inverse_frequencies(512) * 4, 10000.0 ** (-np.arange(0, 16, 2) / 16))


@pytest.mark.parametrize(
    ("architecture", "settings", "windows"),
    [
        ("mistral", {"sliding_window": 128}, (128, 128)),
        ("mistral", {"sliding_window": 128, "use_sliding_window": False}, ()),
        ("mistral", {"sliding_window": 512}, ()),
        ("mistral", {}, ()),
        ("qwen2", {"sliding_window": 128}, ()),
        ("qwen2", {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 1}, (0, 128)),
        (
            "qwen2",
            {
                "sliding_window": 9,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (9, 0),
        ),
    ],
)
def test_window_of_each_layer(
    tmp_path: Path, architecture: str, settings: dict[str, Any], windows: tuple[int, ...]
) -> None:
    config = open_source(write_tiny_folder(tmp_path / "m", architecture=architecture, **settings)).config
    assert (config.windows, config.context_length) == (windows, 512)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_type": "mamba"}, "'mamba' are not supported. Only llama, mistral, qwen2, "),
        ({"hidden_act": "gelu"}, "llama with gelu"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "lacks 'factor'"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, r"several kinds \(full_attention\)"),
        (
            {"model_type": "mistral", "sliding_window": 9, "layer_types": ["chunked_attention"] * 2},
            "Layers of type 'chunked_attention' are not",
        ),
        ({"num_hidden_layers": "two"}, "value of the wrong kind"),
        ({"hidden_size": -64}, "the size `hidden` is -64"),
        ({"head_dim": 10**12, "rope_scaling": _LLAMA3}, "the size `head_dim` is 1000000000000"),
        ({"max_position_embeddings": 10**30}, "the size `context_length` is 1000"),
        ({"rms_norm_eps": "nan"}, "rms_norm_eps is nan"),
        ({"model_type": "granite", "embedding_multiplier": "inf"}, "a multiplier is not finite"),
        (
            {"head_dim": 32},
            "m: model.layers.0.self_attn.q_proj.weight has 64 x 64 numbers, and its metadata says 128 x 64",
        ),
        ({"vocab_size": 400}, "m: model.embed_tokens.weight has 384 x 64 numbers"),
        ({"rope_parameters": [1]}, "value of the wrong kind"),
        ({"sliding_window": -3}, "a window is negative"),
        ({"sliding_window": 9, "layer_types": ["sliding_attention"]}, "1 entries instead of 2"),
        ({"model_type": "granite", "residual_multiplier": "x"}, "value of the wrong kind"),
        ({"model_type": "gemma3_text", "sliding_window_pattern": 0}, "value of the wrong kind"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "1 entries instead of 2"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "is not a positive number"),
    ],
)
def test_unsupported_model_is_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    folder = write_tiny_folder(tmp_path / "m", **settings)
    with pytest.raises(BundleError, match=words):
        open_source(folder)


@pytest.mark.parametrize("name", ["model.layers.1.input_layernorm.weight", "model.norm.weight"])
def test_norm_of_another_size_is_refused(tmp_path: Path, name: str) -> None:
    """One number would be multiplied with all, and more or fewer only fail when the model is loaded."""
    folder = write_tiny_folder(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    for values in (tensors[name][:1], tensors[name][0]):
        save_file(tensors | {name: np.array(values)}, folder / "model.safetensors")
        with pytest.raises(BundleError, match=rf"m: {name} has [01] numbers, and its metadata says 64"):
            open_source(folder)


@pytest.mark.parametrize("part", ["mlp.up_proj.weight", "input_layernorm.weight"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_not_rounded(tmp_path: Path, part: str, value: float) -> None:
    folder, name = write_tiny_folder(tmp_path / "m"), f"model.layers.0.{part}"
    tensors = load_file(folder / "model.safetensors")
    tensors[name].flat[5] = value
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BundleError, match=rf"{part} has values that are no finite numbers\. Download"):
        open_source(folder).tensor(name)


def test_tokens_that_do_not_exist_are_no_special_tokens(tmp_path: Path) -> None:
    wrong = {"bos_token_id": "x", "pad_token_id": -1, "eos_token_id": [10**30, -1, 2]}
    config = open_source(write_tiny_folder(tmp_path / "m", **wrong)).config
    assert config.bos_id is None and config.pad_id is None and config.eos_ids == (2, 0)


def test_wrong_sampling_default_is_one_sentence(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    (folder / "generation_config.json").write_text('{"temperature": "warm"}', encoding="utf-8")
    with pytest.raises(BundleError, match=r"m: generation_config\.json has a wrong value: .*temperature"):
        open_source(folder)


def test_tokenizer_of_another_kind_is_one_sentence(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    (folder / "tokenizer.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be read: .* Download it again"):
        text_ids(open_source(folder))


def test_missing_or_malformed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"empty has no config\.json, so it is not a Hugging Face model"):
        open_source(tmp_path / "empty")

    folder = write_tiny_folder(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"m has no tokenizer\.json"):
        open_source(folder).tokenizer_json()

    (folder / "model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"has no \.safetensors weights"):
        open_source(folder)

    (folder / "config.json").write_text("[1", encoding="utf-8")
    with pytest.raises(BundleError, match=r"m: config\.json cannot be read: "):
        open_source(folder)


def test_missing_config_key_is_named(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del content["hidden_size"]
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match=r"config\.json lacks 'hidden_size'"):
        open_source(folder)


def test_missing_shard_is_reported(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(BundleError, match=r"lacks \d+ tensors that its index names, such as "):
        open_source(folder)


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_truncated_weights_are_refused(tmp_path: Path, size: int) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:size])
    with pytest.raises(BundleError, match=r"model\.safetensors is truncated"):
        open_source(folder)


def test_integer_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"I32"', 1))
    with pytest.raises(BundleError, match=r"embed_tokens\.weight has type I32"):
        open_source(folder).tensor(EMBEDDING)
