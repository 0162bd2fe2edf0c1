"""The CPU graph against the numpy oracle (tests/support/oracle.py): same weights, same logits, same answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tokenizers import Tokenizer

from gateway.builder.graphs import quantise
from gateway.builder.graphs.cpu import write_cpu_graph
from gateway.builder.graphs.matrices import Matrices
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import Blocks, ModelSource
from gateway.bundles.stamp import Precision
from gateway.errors import BundleError
from gateway.worker.decoders.cpu import CpuDecoder
from tests.support.oracle import Oracle, Weights, read_gguf
from tests.support.session import Array, BareSession
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import write_tiny_gguf

_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
#: question -> the start of the oracle's greedy answer
_ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.<|im_end|>",
    "Write a Python function that returns the factorial of n.": (
        "```python\ndef factorial(n):\n    if n == 0:\n        return 1\n    else:\n"
        "        return n * factorial(n - 1)\n```\n\nThis function uses recursion to calculate the factor"
    ),
    "List three healthy breakfast ideas.": (
        "Here are three healthy breakfast ideas that are packed with nutrients and packed with flavor:\n\n"
        "1. **Baked Scrambled Eggs with Avocado and Berries**\n2. **Smoothie with Whole Grain Whole Grain**\n"
    ),
    "Write a short poem about the sea.": (
        "The waves of the ocean, a tapestry woven with life,\nA canvas of endless blue, a canvas of endless blue,\n"
        "A realm where the unknown lies, a realm where the unknown lies,\nA world where the sea is a"
    ),
}


@pytest.fixture(scope="module")
def tokenizer(smollm2: Path) -> Tokenizer:
    return Tokenizer.from_file(str(smollm2 / "tokenizer.json"))


@pytest.fixture(scope="module")
def oracle(smollm2_gguf: Path) -> Oracle:
    return Oracle(read_gguf(smollm2_gguf))


@pytest.fixture(scope="module")
def smollm2_session(smollm2: Path) -> BareSession:
    return BareSession(smollm2 / "model.onnx")


#: question -> (prompt ids, answer ids, the oracle's logits for each answer token)
Expected = Callable[[str], tuple[list[int], list[int], Array]]


@pytest.fixture(scope="module")
def expected_of(tokenizer: Tokenizer, oracle: Oracle) -> Expected:
    """Computes each answer once, in one pass."""

    @cache
    def compute(question: str) -> tuple[list[int], list[int], Array]:
        prompt, answer = _prompt(tokenizer, question), _encode(tokenizer, _ANSWERS[question])
        oracle.reset()
        return prompt, answer, oracle.forward(prompt + answer[:-1])[len(prompt) - 1 :]

    return compute


def _prompt(tokenizer: Tokenizer, question: str) -> list[int]:
    turns = (("system", _SYSTEM), ("user", question))
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return _encode(tokenizer, f"{text}<|im_start|>assistant\n")


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize(
    "question",
    [pytest.param(text, marks=pytest.mark.slow if index > 1 else ()) for index, text in enumerate(_ANSWERS)],
)
def test_greedy_answer_equals_oracle(
    smollm2_session: BareSession, tokenizer: Tokenizer, expected_of: Expected, question: str
) -> None:
    """The bundle computes the answer in one pass, and again step by step."""
    prompt, answer, expected = expected_of(question)
    assert expected.argmax(-1).tolist() == answer
    assert _margin(expected) > 0.01  # the mean error of a logit is 0.004

    session, run = smollm2_session, list(prompt)
    session.reset()
    logits = session.feed([prompt + answer[:-1]])[0, len(prompt) - 1 :]
    assert np.abs(logits - expected).max() < 0.1  # 0.05 was measured; with a cache in single precision 0.002
    session.reset()
    for _ in answer:
        run.append(int(session.feed([run[session.lengths[0] :]])[0, -1].argmax()))
    assert tokenizer.decode(run[len(prompt) :], skip_special_tokens=False) == _ANSWERS[question]


def _margin(logits: Array) -> float:
    """The smallest distance between the first and the second choice."""
    ranked = np.sort(logits, axis=-1)
    return float((ranked[:, -1] - ranked[:, -2]).min())


def test_half_precision_of_the_cache_costs_little(tmp_path: Path) -> None:
    """The loss of a larger model is in docs/log.md."""
    source = open_source(write_tiny_folder(tmp_path / "source"))
    exact = _session(source, tmp_path).feed([_IDS])[0]
    write_cpu_graph(source, tmp_path / "half.onnx", lambda share: None, "float", "float16")
    error = np.abs(BareSession(tmp_path / "half.onnx").feed([_IDS])[0] - exact)
    assert 0 < error.max() < 0.1  # 0.03 was measured; logits reach 12


def test_large_products_use_the_block_kernel(smollm2: Path) -> None:
    """Other products are small corrections. Float zero points or a plain MatMul would make a step many times slower."""
    graph = onnx.load(smollm2 / "model.onnx", load_external_data=False).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMulNBits", "MatMul", "Gemm")]
    computed = dict.fromkeys(("MatMulNBits", "other"), 0)
    for node in products:
        _, weights, *rest = (constants.get(name) for name in node.input)
        assert weights is not None
        if node.op_type == "MatMulNBits":
            computed["MatMulNBits"] += 2 * int(np.prod(weights.dims))  # 4 bits: two weights in a byte
            assert all(zeros is None or zeros.data_type == TensorProto.UINT8 for zeros in rest[1:])
        else:
            computed["other"] += int(np.prod(weights.dims))
    assert computed["MatMulNBits"] > 100_000_000
    assert computed["other"] < 0.04 * computed["MatMulNBits"]  # one value for each block of 32


def test_bundle_is_at_most_20_percent_larger_than_source(smollm2: Path, smollm2_gguf: Path) -> None:
    assert (smollm2 / "model.onnx.data").stat().st_size < 1.2 * smollm2_gguf.stat().st_size


class _Quantised:
    """A source whose weights are rounded as the builder rounds them, for the oracle."""

    def __init__(self, source: ModelSource) -> None:
        self._source = source
        self.config, self.generation = source.config, source.generation
        self.has, self.blocks = source.has, source.blocks
        self.tokenizer_json, self.tokenizer_config = source.tokenizer_json, source.tokenizer_config

    def tensor(self, name: str, rows: slice = slice(0, None)) -> Array:
        values = self._source.tensor(name, rows)
        if values.ndim == 1:
            return values
        blocks = self._source.blocks(name)
        if "embed_tokens" in name:
            blocks = quantise.as_eight_bit(blocks) or quantise.eight_bit(values)
        return _meaning(blocks or (quantise.eight_bit if name == "lm_head.weight" else quantise.four_bit)(values))


def _meaning(blocks: Blocks) -> Array:
    return (blocks.scale[..., None] * blocks.quants + blocks.minimum[..., None]).reshape(len(blocks.scale), -1)


_LAYER = {
    "input_layernorm.weight": "attn_norm",
    "post_attention_layernorm.weight": "ffn_norm",
    "self_attn.q_proj.weight": "attn_q",
    "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.o_proj.weight": "attn_output",
    "mlp.gate_proj.weight": "ffn_gate",
    "mlp.up_proj.weight": "ffn_up",
    "mlp.down_proj.weight": "ffn_down",
}


def _oracle_of(source: ModelSource, *, exact: bool = False) -> Oracle:
    config, weights = source.config, source if exact else _Quantised(source)
    embedding = weights.tensor("model.embed_tokens.weight")
    layers = [
        {
            short: weights.tensor(name)
            for part, short in _LAYER.items()
            if source.has(name := f"model.layers.{i}.{part}")
        }
        for i in range(config.layers)
    ]
    return Oracle(
        Weights(
            embedding=embedding,
            head=embedding if config.tied_embeddings else weights.tensor("lm_head.weight"),
            norm=weights.tensor("model.norm.weight"),
            layers=layers,
            heads=config.heads,
            kv_heads=config.kv_heads,
            theta=config.ropes[0].theta,
            epsilon=config.rms_eps,
            interleaved=False,
            frequency_divisors=np.array(config.ropes[0].factors, np.float32) if config.ropes[0].factors else None,
        )
    )


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
#: Largest error; logits reach 12. Products with 8-bit blocks use activations of 15 bits, all others use floats.
_ROUNDING = {"Q4_0": 1e-3, "Q4_1": 1e-3, "Q8_0": 1e-2, "Q5_0": 1e-2, "Q5_1": 1e-2}
_IDS = [1, 75, 300, 2, 9, 41, 380, 17, 5, 130, 260, 77]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tied": False},
        {"architecture": "qwen2", "bias": True, "layers": 3},
        {"heads": 8},  # attention is wider than the hidden size
        {"rope_scaling": _LLAMA3},
        {"architecture": "mistral", "sliding_window": 128},
    ],
    ids=str,
)
def test_each_model_shape_equals_oracle(tmp_path: Path, options: dict[str, Any]) -> None:
    source = open_source(write_tiny_folder(tmp_path / "source", **options))
    expected = _oracle_of(source).forward(_IDS)
    logits = _session(source, tmp_path).feed([_IDS])[0]
    np.testing.assert_allclose(logits, expected, atol=1e-3)
    last = BareSession(tmp_path / "model.onnx").feed([_IDS], logits_to_keep=np.array([2]))[0]
    np.testing.assert_allclose(last, expected[-2:], atol=1e-3)


@pytest.mark.parametrize("stored_as", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_quantised_gguf_equals_oracle_on_the_same_file(tmp_path: Path, stored_as: str, tied: bool) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", stored_as=stored_as, tied=tied)
    expected = Oracle(read_gguf(path)).forward(_IDS)
    np.testing.assert_allclose(
        _session(open_source(path), tmp_path).feed([_IDS])[0], expected, atol=_ROUNDING[stored_as]
    )


def test_size_that_is_no_multiple_of_the_block_is_refused(tmp_path: Path) -> None:
    source = open_source(write_tiny_folder(tmp_path / "source", intermediate=120))
    with pytest.raises(BundleError, match="feed-forward size, 120, is not a multiple of 32"):
        _session(source, tmp_path)


@pytest.mark.parametrize(("precision", "error"), [("float16", 3e-2), ("int8", 1.0)])
@pytest.mark.parametrize("tied", [True, False])
def test_precision_of_floats(tmp_path: Path, precision: Precision, error: float, tied: bool) -> None:
    """Against the float32 weights: with 4 bits the error is above 3."""
    source = open_source(write_tiny_folder(tmp_path / "source", tied=tied, bias=True))
    write_cpu_graph(Matrices(source, precision), tmp_path / "model.onnx", lambda share: None, "float", "float32")
    notes = {entry.key: entry.value for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert notes["activations"] == "float"
    apart = BareSession(tmp_path / "model.onnx").feed([_IDS])[0] - _oracle_of(source, exact=True).forward(_IDS)
    assert np.abs(apart).max() < error


def _session(source: ModelSource, folder: Path) -> BareSession:
    write_cpu_graph(source, folder / "model.onnx", lambda share: None, "float", "float32")
    return BareSession(folder / "model.onnx")


def test_parts_of_different_block_kinds_are_concatenated(tmp_path: Path) -> None:
    class Mixed(_Quantised):
        """v in 8-bit blocks, q and k in 4-bit blocks, as in K-quant files."""

        def __init__(self, source: ModelSource) -> None:
            super().__init__(source)
            self.blocks = self._mixed  # type: ignore[method-assign]

        def _mixed(self, name: str) -> Blocks | None:
            return quantise.eight_bit(self._source.tensor(name)) if "v_proj" in name else self._source.blocks(name)

    source = Mixed(open_source(write_tiny_folder(tmp_path / "source", bias=True)))
    np.testing.assert_allclose(_session(source, tmp_path).feed([_IDS])[0], _oracle_of(source).forward(_IDS), atol=2e-3)


@pytest.fixture
def graph(tiny: Path) -> Path:
    return tiny / "model.onnx"


#: (logits, expected) -> None
Compare = Callable[[Array, Array], None]


@pytest.fixture
def same(tiny_decoder: CpuDecoder) -> Compare:
    """Asserts identical bits if the decoder is batch-invariant with `row_multiple` 1, which this graph has here.

    Else a last bit can move a value to the next step of an int8 grid (0.12 was measured on ARM).
    """
    is_same = tiny_decoder.spec.is_batch_invariant and tiny_decoder.row_multiple == 1
    tolerance = 0.0 if is_same else 0.5
    return lambda logits, expected: np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


def test_chunked_prefill_gives_identical_logits(graph: Path, same: Compare) -> None:
    whole = BareSession(graph).feed([_IDS])[0]
    session = BareSession(graph)
    pieces = [session.feed([_IDS[:5]])[0], session.feed([_IDS[5:11]])[0], session.feed([_IDS[11:]])[0]]
    same(np.concatenate(pieces), whole)


def test_batch_of_different_lengths_gives_identical_logits(graph: Path, same: Compare) -> None:
    prompts = [_IDS, _IDS[3:7], _IDS[:1]]
    together = BareSession(graph, batch=3)
    first = together.feed_padded(prompts)
    steps = [together.feed([[token], [token + 1], [token + 2]]) for token in (20, 30, 40)]
    for row, prompt in enumerate(prompts):
        alone = BareSession(graph)
        same(first[row, : len(prompt)], alone.feed([prompt])[0])
        for token, step in zip((20, 30, 40), steps, strict=True):
            same(step[row], alone.feed([[token + row]])[0])


def test_separate_cache_buffers_hold_exactly_the_past_rows(tmp_path: Path) -> None:
    """These buffers have no free row for padding rows, so the logits are close and not identical."""
    graph = tmp_path / "model.onnx"
    write_cpu_graph(open_source(write_tiny_folder(tmp_path / "source")), graph, lambda share: None, "float", "float32")
    shared, session = BareSession(graph), BareSession(graph).session
    names = [value.name for value in session.get_inputs() if value.name.startswith("past")]
    past = {name: np.zeros((1, 2, 0, 16), np.float32) for name in names}
    for ids in (_IDS, [7], [8]):
        length = past[names[0]].shape[2] + len(ids)
        feeds = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, length), np.int64), **past}
        logits, *present = session.run(None, feeds)
        past = dict(zip(names, present, strict=True))
        assert all(cache.shape[2] == length for cache in present)
        np.testing.assert_allclose(logits, shared.feed([ids]), atol=1e-3)


@pytest.mark.parametrize("count", [2, pytest.param(len(_ANSWERS), marks=pytest.mark.slow)])
def test_int8_activations_agree_with_oracle_on_90_percent(
    smollm2_int8: Path, expected_of: Expected, count: int
) -> None:
    """llama.cpp with int8 activations agrees with float activations about as well (docs/log.md)."""
    agreed, apart, session = [], [], BareSession(smollm2_int8 / "model.onnx")
    for question in list(_ANSWERS)[:count]:
        prompt, answer, expected = expected_of(question)
        session.reset()
        logits = session.feed([prompt + answer[:-1]])[0, len(prompt) - 1 :]
        agreed += (logits.argmax(-1) == expected.argmax(-1)).tolist()
        apart.append(np.square(logits - expected).mean())
    assert np.mean(agreed) > 0.9
    assert np.sqrt(np.mean(apart)) < 0.4


def test_int8_activations_set_accuracy_level_4_on_each_product(tmp_path: Path) -> None:
    source = open_source(write_tiny_folder(tmp_path / "source"))
    write_cpu_graph(source, tmp_path / "model.onnx", lambda share: None)
    nodes = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.node
    levels = [
        a.i for node in nodes if node.op_type == "MatMulNBits" for a in node.attribute if a.name == "accuracy_level"
    ]
    assert len(levels) == 4 * source.config.layers + 1 and set(levels) == {4}
    error = np.abs(BareSession(tmp_path / "model.onnx").feed([_IDS])[0] - _oracle_of(source).forward(_IDS)).max()
    assert 1e-2 < error < 2


@pytest.mark.parametrize("stored_as", ["Q4_1", "Q5_1"])
def test_int8_activations_need_no_float_product_for_minimums(tmp_path: Path, stored_as: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", stored_as=stored_as)
    write_cpu_graph(open_source(path), tmp_path / "model.onnx", lambda share: None)
    kinds = {node.op_type for node in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.node}
    assert "MatMulNBits" in kinds and not kinds & {"Gemm", "MatMul"}
    error = BareSession(tmp_path / "model.onnx").feed([_IDS])[0] - Oracle(read_gguf(path)).forward(_IDS)
    assert 0.01 < np.sqrt(np.square(error).mean()) < 0.4  # 0.25 was measured; logits reach 12


@pytest.mark.parametrize("keep", [1, 3, len(_IDS), 0])
def test_logits_to_keep_returns_only_last_positions(graph: Path, same: Compare, keep: int) -> None:
    whole = BareSession(graph).feed([_IDS])[0]
    kept = BareSession(graph).feed([_IDS], logits_to_keep=np.array([keep]))[0]
    same(kept, whole[-keep:])


def test_required_inputs_are_those_of_genai(tiny: Path) -> None:
    session = BareSession(tiny / "model.onnx").session
    names = {value.name for value in session.get_inputs()}
    caches = {f"past_key_values.{layer}.{kind}" for layer in range(2) for kind in ("key", "value")}
    assert names == {"input_ids", "attention_mask", *caches}
    assert {value.name for value in session.get_overridable_initializers()} == {"logits_to_keep", "row_multiple"}


def test_constants_are_page_aligned_in_a_separate_file(tiny: Path) -> None:
    graph = onnx.load(tiny / "model.onnx", load_external_data=False).graph
    offsets = {
        int(entry.value) for tensor in graph.initializer for entry in tensor.external_data if entry.key == "offset"
    }
    assert len(offsets) > 10
    assert all(offset % 4096 == 0 for offset in offsets)
    assert (tiny / "model.onnx").stat().st_size < 100_000
