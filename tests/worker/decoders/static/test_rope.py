"""The position tables of the published kinds of rotary scaling, against the formulas of the model cards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gateway.errors import BundleError
from gateway.worker.decoders.static.rope import rope_table

HALF, THETA = 32, 500000.0
PLAIN = [THETA ** (-2 * index / (2 * HALF)) for index in range(HALF)]


def config(encoding: dict[str, Any] | None, **htp: Any) -> dict[str, Any]:
    model = {} if encoding is None else {"positional-encoding": encoding}
    return {"dialog": {"engine": {"model": model, "backend": {"QnnHtp": htp}}}}


def scaled(**scaling: Any) -> dict[str, Any]:
    return config({"type": "rope", "rope-dim": HALF, "rope-theta": THETA, "rope-scaling": scaling})


def assert_table(
    config: dict[str, Any], frequencies: list[float], magnitude: float = 1.0, positions: int = 100
) -> None:
    cosines, sines = rope_table(config, positions, "m")
    assert cosines.shape == sines.shape == (positions, HALF)
    for position in (0, 1, 99):
        expected = [(math.cos(position * item), math.sin(position * item)) for item in frequencies]
        actual = np.stack([cosines[position], sines[position]], axis=1)
        np.testing.assert_allclose(actual, np.array(expected) * magnitude, atol=1e-9)


def test_plain_rope_from_the_backend_table() -> None:
    assert_table(config(None, **{"pos-id-dim": HALF, "rope-theta": THETA}), PLAIN)


def test_llama3_scaling() -> None:
    """Wavelengths below 8192 / 4 stay, those above 8192 / 1 get 8 times as long, those between are interpolated."""
    expected = []
    for frequency in PLAIN:
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            expected.append(frequency)
        elif wavelength > 8192 / 1:
            expected.append(frequency / 8)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    factors = {"factor": 8.0, "low-freq-factor": 1.0, "high-freq-factor": 4.0}
    assert_table(scaled(**{"rope-type": "llama3", "original-max-position-embeddings": 8192} | factors), expected)


@pytest.mark.parametrize(("original", "which"), [(4096, "short"), (50, "long")])
def test_longrope_scaling(original: int, which: str) -> None:
    """Each frequency has its own divisor; a context above the original length takes the other list."""
    factors = {"short": [1.0 + index / 50 for index in range(HALF)], "long": [1.0 + index for index in range(HALF)]}
    table = scaled(
        **{
            "rope-type": "longrope",
            "factor": 32,
            "original-max-position-embeddings": original,
            "short-factor": factors["short"],
            "long-factor": factors["long"],
        }
    )
    expected = [frequency / factor for frequency, factor in zip(PLAIN, factors[which], strict=True)]
    assert_table(table, expected, math.sqrt(1 + math.log(32) / math.log(original)))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (scaled(**{"rope-type": "yarn", "factor": 4.0}), "its rope scaling is 'yarn'"),
        (config({"type": "alibi", "rope-dim": 1}), "its position encoding is 'alibi'"),
        (config({"type": "rope"}), "no readable position encoding"),
        (config(None), "no readable position encoding"),
        (scaled(**{"rope-type": "longrope", "short-factor": [1.0]}), "1 factors for 32 frequencies"),
        (scaled(**{"rope-type": "longrope", "short-factor": [0.0] * HALF}), "no readable position encoding"),
        (scaled(**{"rope-type": "longrope", "factor": 2, "original-max-position-embeddings": 1}), "no readable"),
        (scaled(**{"rope-type": "llama3", "factor": 0}), "no readable position encoding"),
        (config({"rope-dim": HALF, "rope-theta": 0}), "no readable position encoding"),
        (config({"rope-dim": HALF, "rope-theta": -5.0}), "no readable position encoding"),
        (scaled(**{"rope-type": "longrope", "short-factor": [5e-324] * HALF}), "no numbers"),
        (config({"rope-dim": 10**9}), "no readable position encoding"),
    ],
    ids=[
        "yarn",
        "alibi",
        "no-size",
        "nothing",
        "factors",
        "zero",
        "log",
        "factor",
        "theta",
        "negative",
        "least",
        "huge",
    ],
)
def test_unknown_encoding_is_refused_by_name(table: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        rope_table(table, 10, "m")
