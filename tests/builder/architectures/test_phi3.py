"""Phi-3, Phi-3.5 and Phi-4-mini: their published configurations, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gateway.builder.architectures.phi3 import PHI3
from gateway.builder.sources.source import TransformerConfig
from gateway.errors import BundleError

_SHAPE = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 4096,
}
_MINI_4K = _SHAPE | {"max_position_embeddings": 4096, "rope_scaling": None, "sliding_window": 2047}


def _long(rotated: int, kind: str = "longrope") -> dict[str, Any]:
    numbers = {"short_factor": [1.0] * (rotated // 2), "long_factor": [4.0] * (rotated // 2)}
    return {"max_position_embeddings": 131072, "sliding_window": 262144, "rope_scaling": {"type": kind, **numbers}}


def config(settings: dict[str, Any]) -> TransformerConfig:
    return PHI3.config(settings, tied=False, eos_ids=(32000,))


def test_mini_with_4k_has_a_window_in_each_layer() -> None:
    found = config(_MINI_4K)
    assert (found.head_dim, found.ropes[0].dim, found.windows) == (96, 96, (2047,) * 32)
    assert (found.ropes[0].amplitude, found.ropes[0].long_factors) == (1.0, ())


@pytest.mark.parametrize("kind", ["longrope", "su"])
def test_context_of_the_bundle_decides_between_long_and_short_factors(kind: str) -> None:
    found = config(_SHAPE | _long(96, kind))
    (rope,) = found.ropes
    plain = 10000.0 ** (-np.arange(0, 96, 2) / 96)
    np.testing.assert_allclose(rope.inverse_frequencies(4096), plain)
    np.testing.assert_allclose(rope.inverse_frequencies(4097), plain / 4)
    assert rope.amplitude == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    assert found.windows == ()  # larger than the context


def test_phi_4_mini_rotates_three_quarters_of_a_head() -> None:
    found = config(_SHAPE | _long(96) | {"num_attention_heads": 24, "partial_rotary_factor": 0.75})
    assert (found.head_dim, found.ropes[0].dim) == (128, 96)


def test_wrong_number_of_factors_is_refused() -> None:
    with pytest.raises(ValueError, match="short_factor has 32 numbers instead of 48"):
        config(_SHAPE | _long(64))


def test_yarn_is_refused_with_the_next_step() -> None:
    with pytest.raises(
        BundleError, match=r"type 'yarn' is not supported.* Use a model without it, or serve it"
    ) as caught:
        config(_MINI_4K | {"rope_scaling": {"type": "yarn", "factor": 4.0}})
    assert "\n" not in caught.value.message
