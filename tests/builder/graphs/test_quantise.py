"""Quantisation of float matrices: its error, and the cases without loss."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from gateway.builder.graphs import quantise
from gateway.builder.sources.source import Blocks

_RANDOM = np.random.default_rng(2)
_WEIGHTS = _RANDOM.standard_normal((64, 256), np.float32)


def _meaning(blocks: Blocks) -> np.ndarray:
    return (blocks.scale[..., None] * blocks.quants + blocks.minimum[..., None]).reshape(len(blocks.scale), -1)


def _relative_error(blocks: Blocks, weights: np.ndarray) -> float:
    return float(np.linalg.norm(_meaning(blocks) - weights) / np.linalg.norm(weights))


def test_four_bit_fit_is_better_than_min_max_rounding() -> None:
    blocked = _WEIGHTS.reshape(64, 8, 32)
    low, high = np.minimum(blocked.min(-1), 0), np.maximum(blocked.max(-1), 0)
    scale = (high - low) / 15
    zero = np.rint(-low / scale)
    plain = (np.clip(np.rint(blocked / scale[..., None]) + zero[..., None], 0, 15) - zero[..., None]) * scale[..., None]
    plain_error = np.linalg.norm(plain - blocked) / np.linalg.norm(blocked)
    fitted = _relative_error(quantise.four_bit(_WEIGHTS), _WEIGHTS)
    assert fitted < plain_error
    assert fitted < 0.09


def test_important_inputs_have_smaller_errors() -> None:
    """The error of products with inputs of these sizes."""
    importance = np.exp(_RANDOM.standard_normal(256, np.float32) * 2)
    equal, guided = (
        float((np.square(quantise.four_bit(_WEIGHTS, given).values() - _WEIGHTS) * importance).sum())
        for given in (None, importance)
    )
    assert guided < 0.7 * equal


def test_input_that_the_text_never_has_keeps_its_weights() -> None:
    importance = np.ones(256, np.float32)
    importance[::2] = 0
    blocks = quantise.four_bit(_WEIGHTS, importance)
    assert np.abs(blocks.values() - _WEIGHTS).max() < 3


def test_four_bit_zero_points_are_integers_0_to_15() -> None:
    blocks = quantise.four_bit(_WEIGHTS + 0.5)
    zeros = np.rint(-blocks.minimum / blocks.scale)
    np.testing.assert_array_equal(-zeros * blocks.scale, blocks.minimum)
    assert zeros.min() >= 0 and zeros.max() <= 15
    assert blocks.quants.dtype == np.uint8 and blocks.quants.max() <= 15


@pytest.mark.parametrize(("bits", "top", "lowest"), [(8, 31, -16), (8, 15, -8), (4, 3, 6), (4, 15, 0), (8, 127, -64)])
def test_centred_quants_are_around_the_zero_of_the_kernel(bits: int, top: int, lowest: int) -> None:
    quants = _RANDOM.integers(0, top + 1, (3, 4, 32)).astype(np.uint8 if bits == 4 else np.int8)
    quants[..., :2] = 0, top
    scale, minimum = _RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
    blocks = Blocks(bits=bits, scale=scale, minimum=minimum, quants=quants)
    found = quantise.centred(blocks)
    assert (found.quants.min(), found.quants.max(), found.quants.dtype) == (lowest, lowest + top, quants.dtype)
    np.testing.assert_allclose(found.values(), blocks.values(), atol=1e-5)
    again = quantise.with_eight_bits(blocks)
    assert again.bits == 8 and np.array_equal(again.values(), blocks.values())


def test_eight_bit_error_is_at_most_half_a_step() -> None:
    blocks = quantise.eight_bit(_WEIGHTS)
    steps = np.abs(_meaning(blocks) - _WEIGHTS).reshape(64, 8, 32) / blocks.scale[..., None]
    assert steps.max() <= 0.501
    assert _relative_error(blocks, _WEIGHTS) < 0.006


@pytest.mark.parametrize("fit", [quantise.four_bit, quantise.eight_bit])
def test_zero_matrix_stays_zero(fit: object) -> None:
    blocks = fit(np.zeros((2, 64), np.float32))  # type: ignore[operator]
    np.testing.assert_array_equal(_meaning(blocks), 0)


def test_row_chunks_give_identical_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = quantise.four_bit(_WEIGHTS)
    monkeypatch.setattr(quantise, "_AT_ONCE", 2560)
    parts = quantise.four_bit(_WEIGHTS)
    np.testing.assert_array_equal(whole.quants, parts.quants)
    np.testing.assert_array_equal(whole.scale, parts.scale)


def test_as_eight_bit_is_lossless_for_symmetric_blocks() -> None:
    quants = _RANDOM.integers(0, 16, (4, 3, 32), np.uint8)
    scale = _RANDOM.standard_normal((4, 3), np.float32)
    symmetric = Blocks(bits=4, scale=scale, minimum=-8 * scale, quants=quants)
    wide = quantise.as_eight_bit(symmetric)
    assert wide is not None and wide.bits == 8
    np.testing.assert_allclose(_meaning(wide), _meaning(symmetric), atol=1e-6)
    assert quantise.as_eight_bit(Blocks(bits=4, scale=scale, minimum=scale, quants=quants)) is None


def test_sums_as_inputs_replace_minimums() -> None:
    """The error is a 450th of a step where the minimum is between 0 and 15 steps."""
    scale = _RANDOM.uniform(0.5, 2, (16, 40)).astype(np.float32)
    scale[0] = 0
    minimum = scale * _RANDOM.uniform(-15, 0, scale.shape).astype(np.float32)
    blocks = Blocks(bits=4, scale=scale, minimum=minimum, quants=_RANDOM.integers(0, 16, (16, 40, 32)).astype(np.uint8))
    found = quantise.with_sums_as_inputs(blocks)
    zeros = np.rint(-found.minimum / np.where(found.scale == 0, 1, found.scale))
    np.testing.assert_array_equal(found.minimum, -zeros * found.scale)
    assert zeros.min() >= 0 and zeros.max() <= 15
    assert found.quants.shape == (16, 40 + 2 * 2, 32)  # 40 sums end at a whole block
    weights, digits = found.values()[:, : 40 * 32], found.values()[:, 40 * 32 :]
    each = (digits[:, :64] + digits[:, 64:])[:, :40, None]  # what the sum of a block adds to each of its weights
    error = np.abs((weights.reshape(16, 40, 32) + each) - blocks.values().reshape(16, 40, 32))
    assert error.max() < 2 / 450 + 1e-5  # 2 is the largest step


def test_larger_blocks_round_only_what_the_kernel_multiplies_slowly() -> None:
    quants = _RANDOM.integers(-32, 32, (300, 12, 16)).astype(np.int8)
    small = Blocks(bits=8, scale=np.ones((300, 12), np.float32), minimum=np.zeros((300, 12), np.float32), quants=quants)
    found = quantise.in_larger_blocks(small, 128)
    assert found.quants.shape == (300, 3, 64)  # 128 does not divide 192
    assert 0 < _relative_error(found, small.values()) < 0.005
    assert quantise.in_larger_blocks(found, 128) is found
    offset = replace(found, minimum=found.scale)
    np.testing.assert_allclose(quantise.in_larger_blocks(offset, 32).values(), offset.values(), atol=0.2)
