"""Reads rotary positions from a configuration: plain, linear, llama3, or with one factor for each frequency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gateway.builder.sources.source import Rope
from gateway.errors import BundleError


def read_rope(settings: Mapping[str, Any], dim: int) -> Rope:
    """The rotary positions of a model with one kind. `dim`: the rotated dimensions of a head."""
    parameters = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta") or settings.get("rope_theta", 10000.0))
    return Rope(dim=dim, theta=theta, factors=_factors(parameters, theta, dim))


def _factors(parameters: Mapping[str, Any], theta: float, dim: int) -> tuple[float, ...]:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    pairs = dim // 2
    match kind:
        case "default":
            return ()
        case "linear":
            return (float(parameters["factor"]),) * pairs
        case "llama3":
            wavelengths = [2 * math.pi * theta ** (2 * pair / dim) for pair in range(pairs)]
            return tuple(_llama3_factor(parameters, wavelength) for wavelength in wavelengths)
        case "factors":  # of a GGUF file
            return tuple(float(factor) for factor in parameters["factors"])
    raise BundleError(f"Rotary scaling of type {kind!r} is not supported. Only llama3 and linear are.")


def _llama3_factor(rope: Mapping[str, Any], wavelength: float) -> float:
    """The published rule: `factor` for long waves, 1 for short waves, a value between them for the others."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(rope["original_max_position_embeddings"]) / wavelength
    blend = min(max((turns - low) / (high - low), 0.0), 1.0)
    return 1 / ((1 - blend) / factor + blend)
