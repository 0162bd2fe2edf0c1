"""GGUF files: tensors, configuration, block formats and faults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnxruntime
import pytest
from gguf.quants import dequantize
from onnx import TensorProto

from gateway.builder.graphs.linear import LinearWriter
from gateway.builder.graphs.writer import GraphWriter
from gateway.builder.sources import gguf_blocks
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import EMBEDDING, HEAD, Blocks, layer
from gateway.errors import BundleError
from tests.support.tiny import tiny_weights
from tests.support.tiny_gguf import BLOCK_FORMATS, random_blocks, write_tiny_gguf


def _meaning(blocks: Blocks) -> np.ndarray:
    values = blocks.scale[..., None] * blocks.quants + blocks.minimum[..., None]
    return values.reshape(len(values), -1)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_tensors_equal_hugging_face_tensors(tmp_path: Path, architecture: str) -> None:
    source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf", architecture=architecture, tied=False, bias=True))
    expected = tiny_weights(tied=False, bias=True)
    assert all(source.has(name) for name in expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(source.tensor(name), values, err_msg=name)
    assert not source.config.tied_embeddings
    assert source.blocks(EMBEDDING) is None


def test_config_is_read_from_metadata(tmp_path: Path) -> None:
    config = open_source(write_tiny_gguf(tmp_path / "tiny.gguf")).config
    assert (config.layers, config.hidden, config.heads, config.kv_heads, config.head_dim) == (2, 64, 4, 2, 16)
    assert (config.ffn, config.vocab, config.context_length, config.ropes[0].theta) == (128, 384, 512, 10000.0)
    assert config.tied_embeddings
    assert config.eos_ids == (2, 0)  # `eos` of the file, then the other end token
    assert (config.bos_id, config.pad_id) == (1, None)


@pytest.mark.parametrize("stored_as", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_equal_dequantised_tensor(tmp_path: Path, stored_as: str) -> None:
    source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf", stored_as=stored_as))
    for name in (layer(0, "self_attn.q_proj.weight"), layer(1, "self_attn.k_proj.weight"), EMBEDDING):
        blocks = source.blocks(name)
        assert blocks is not None
        np.testing.assert_array_equal(_meaning(blocks), source.tensor(name), err_msg=name)


@pytest.mark.parametrize(("stored_as", "offset"), [("F32", 0), ("Q4_1", 0), ("Q4_1", 2)])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, stored_as: str, offset: int) -> None:
    """Also in a block's scale (byte 0) or minimum (byte 2)."""
    path, name = write_tiny_gguf(tmp_path / "tiny.gguf", stored_as=stored_as), layer(0, "self_attn.q_proj.weight")
    (tensor,) = (each for each in gguf.GGUFReader(path).tensors if each.name == "blk.0.attn_q.weight")
    content = bytearray(path.read_bytes())
    start, kind = tensor.data_offset + offset, np.float32 if stored_as == "F32" else np.float16
    content[start : start + kind().nbytes] = kind("nan").tobytes()
    path.write_bytes(content)
    source = open_source(path)
    for read in (source.tensor,) if stored_as == "F32" else (source.tensor, source.blocks):
        with pytest.raises(BundleError, match=r"q_proj\.weight has values that are no finite numbers\. Download"):
            read(name)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_unpacked_blocks_equal_reference_dequantisation(name: str) -> None:
    rows = random_blocks(name, rows=8, blocks=6)
    blocks = gguf_blocks.unpack(name, rows)
    assert blocks is not None and blocks.quants.dtype == (np.uint8 if blocks.bits == 4 else np.int8)
    assert blocks.bits == 8 or blocks.quants.max() < 16
    np.testing.assert_array_equal(_meaning(blocks), dequantize(rows, gguf.GGMLQuantizationType[name]))


def test_products_of_all_block_formats_equal_those_of_their_values(tmp_path: Path) -> None:
    """One graph with a product for each format, with float activations."""
    stored = {name: random_blocks(name, rows=4, blocks=256 // BLOCK_FORMATS[name][0]) for name in BLOCK_FORMATS}
    with GraphWriter(tmp_path / "m.onnx") as graph:
        linear = LinearWriter(graph, rank=2)
        graph.input("x", TensorProto.FLOAT, [3, 256])
        for name, rows in stored.items():
            blocks = gguf_blocks.unpack(name, rows)
            assert blocks is not None
            graph.node("Identity", [linear.product(name, "x", [blocks])], f"{name}.result")
            graph.output(f"{name}.result", TensorProto.FLOAT, [3, 4])
        graph.save("products")
    x = np.random.default_rng(2).standard_normal((3, 256)).astype(np.float32)
    results = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x})
    for (name, rows), result in zip(stored.items(), results, strict=True):
        expected = x @ dequantize(rows, gguf.GGMLQuantizationType[name]).T
        np.testing.assert_allclose(result, expected, atol=2e-6 * np.abs(expected).max(), rtol=0, err_msg=name)


@pytest.mark.parametrize("stored_as", ["F16", "BF16"])
def test_floats_are_read_and_have_no_blocks(tmp_path: Path, stored_as: str) -> None:
    source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf", stored_as=stored_as))
    name = layer(0, "mlp.up_proj.weight")
    assert source.blocks(name) is None and source.notes() == ()
    np.testing.assert_allclose(source.tensor(name), tiny_weights(tied=True)[name], atol=2**-8)


def test_llama3_rotary_factors_divide_frequencies(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf", extra_tensors={"rope_freqs.weight": factors}))
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(source.config.ropes[0].inverse_frequencies(512), plain / factors)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "mamba"}, "'mamba' are not supported. Only llama, mistral, qwen2, "),
        ({"llama__expert_count": 8}, "experts"),
        ({"llama__block_count": None}, "lacks llama.block_count"),
        ({"llama__rope__scaling__type": "yarn"}, "'yarn'"),
    ],
)
def test_unsupported_model_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(BundleError, match=words):
        open_source(path)


def test_size_as_an_array_of_equal_layers_is_one_size(tmp_path: Path) -> None:
    arrays = {"head_count": [4, 4], "head_count_kv": [2, 2]}
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf",
        llama__feed_forward_length=[128, 128],
        **{f"llama__attention__{key}": value for key, value in arrays.items()},
    )
    config = open_source(path).config
    assert (config.heads, config.kv_heads, config.ffn) == (4, 2, 128)


@pytest.mark.parametrize("key", ["feed_forward_length", "attention.head_count", "attention.head_count_kv"])
def test_layers_of_different_sizes_are_refused_in_one_sentence(tmp_path: Path, key: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **{f"llama__{key.replace('.', '__')}": [4, 2]})
    with pytest.raises(BundleError, match=rf"layers of different sizes \(llama\.{key}\)"):
        open_source(path)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", **{f"llama__{key.replace('.', '__')}": "many"})
    with pytest.raises(BundleError, match="a value of the wrong kind in its metadata"):
        open_source(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.99])
def test_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(
        BundleError, match=r"cut\.gguf is incomplete .* [\d.]+ (bytes|MB) are less .* Download it again"
    ):
        open_source(cut)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"hello", "is not a GGUF file"), (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer")],
)
def test_file_of_another_kind_is_refused_in_words(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(BundleError, match=rf"^a\.gguf {words}"):
        open_source(tmp_path / "a.gguf")


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    source = open_source(write_tiny_gguf(tmp_path / "tiny.gguf"))
    assert not source.has(HEAD)
    with pytest.raises(BundleError, match=r"has no tensor lm_head\.weight"):
        source.tensor(HEAD)


def test_damaged_bytes_raise_only_bundle_error(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    random = np.random.default_rng(3)
    refused = 0
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[random.integers(0, 12_000, random.integers(1, 10))] = random.integers(0, 256)
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged.tobytes())
        try:
            source = open_source(path)
            source.tokenizer_json()
        except BundleError:
            refused += 1
    assert refused > 20
