"""Caches whose number of rows the graphs leave open, as in the bundles of Olive and Foundry Local."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest

from gateway.errors import BundleError
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.open import open_static_decoder
from tests.support.decoding import IDS, greedy
from tests.support.npu.fixtures import OpenDecoder
from tests.support.npu.olive_bundle import WIDTH
from tests.support.oracle import Oracle

#: Prompts of 3 to 16 tokens, with 20 tokens of an answer each 160 in all. The two best logits of float32 differ by 0.2
#: or more everywhere, so that the NPU's float16 cannot change a token.
PROMPTS = [
    IDS[13:16], IDS[8:4:-1], IDS[6:12], IDS[:8], IDS[8:], IDS[13:0:-1], IDS[2:], IDS[:0:-1],
]  # fmt: skip


def answers(decoder: StaticDecoder, count: int = 20) -> list[list[int]]:
    return [greedy(decoder, prompt, count) for prompt in PROMPTS]


def float32_answer(oracle: Oracle, prompt: Sequence[int], count: int) -> list[int]:
    return oracle.greedy(list(prompt), count)[0]


@pytest.fixture(scope="module")
def expected(oracle: Oracle) -> list[list[int]]:
    return [float32_answer(oracle, prompt, 20) for prompt in PROMPTS]


@pytest.fixture(scope="module", params=["olive_compiled", "olive_in_parts", "foundry_compiled"])
def on_npu(request: pytest.FixtureRequest) -> Iterator[StaticDecoder]:
    with closing(open_static_decoder(request.getfixturevalue(request.param), provider="qnn")) as decoder:
        yield decoder


def test_compiled_olive_bundle_generates_float32_tokens(on_npu: StaticDecoder, expected: list[list[int]]) -> None:
    assert answers(on_npu) == expected
    assert on_npu.spec.placement["QNN"] in (6, 8)  # around attention on the CPU: 3 networks a phase, 2 a phase and part


def test_window_of_compiled_olive_bundle_gives_float32_logits(on_npu: StaticDecoder, oracle: Oracle) -> None:
    logits = on_npu.verify(on_npu.new_cache(), IDS[:WIDTH])
    expected = np.stack([oracle.greedy(list(IDS[: row + 1]), 1)[1][0] for row in range(WIDTH)])
    assert np.linalg.norm(logits - expected) < 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize("provider", ["cpu", "qnn"])  # qnn: compiled when it is opened first
def test_uncompiled_olive_bundle_generates_float32_tokens(
    olive_uncompiled: Path,
    provider: str,
    expected: list[list[int]],
    open_decoder: OpenDecoder,
    request: pytest.FixtureRequest,
) -> None:
    if provider == "qnn":
        request.getfixturevalue("npu")
    assert answers(open_decoder(olive_uncompiled, provider)) == expected


@pytest.mark.parametrize("rows", [4, WIDTH, WIDTH + 1, 24, 48])
def test_configured_context_is_usable_to_last_row(
    olive_compiled: Path, rows: int, oracle: Oracle, open_decoder: OpenDecoder
) -> None:
    decoder, prompt = open_decoder(olive_compiled, "qnn", context_length=rows), IDS[1:6][: rows - 1]
    assert decoder.spec.context_length == rows
    cache = decoder.new_cache()
    decoder.prefill(cache, prompt)
    assert {buffer.array.shape for buffer in cache.buffers.values()} == {(1, 2, rows, 16)}
    assert greedy(decoder, prompt, rows - len(prompt)) == float32_answer(oracle, prompt, rows - len(prompt))


def edited(bundle: Path, folder: Path, file: str, tensor: str, axis: int) -> Path:
    """A copy of `bundle` in which dimension `axis` of an input is open."""
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns("compiled"))
    model = onnx.load(folder / file, load_external_data=False)
    (value,) = (value for value in model.graph.input if value.name == tensor)
    value.type.tensor_type.shape.dim[axis].dim_param = "open"
    onnx.save(model, folder / file)
    return folder


@pytest.mark.parametrize(
    ("layout", "file", "tensor", "axis"),
    [
        ("olive_uncompiled", "context_ctx.onnx", "input_hidden_states", 1),
        ("olive_uncompiled", "context_ctx.onnx", "past_key_values.1.key", 1),
        ("ai_hub_uncompiled", "prompt_1_of_1.onnx", "past_key_0_in", 3),  # the host writes this cache
    ],
)
def test_other_open_dimensions_are_refused(
    layout: str, file: str, tensor: str, axis: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    bundle = edited(request.getfixturevalue(layout), tmp_path / "open", file, tensor, axis)
    with pytest.raises(BundleError, match=rf"{file}: dimension {axis} of {tensor} has a variable size; .* Export"):
        open_static_decoder(bundle, provider="cpu")
