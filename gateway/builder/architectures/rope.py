"""Reads rotary positions from a configuration: plain, linear, llama3, longrope, or one factor for each frequency."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from gateway.builder.sources.source import Rope
from gateway.errors import BundleError

_KINDS = ("default", "linear", "llama3", "longrope")


def rotated_part(settings: Mapping[str, Any], head_dim: int) -> int:
    """The number of dimensions of a head that are rotated, in a family that can rotate a part of them."""
    parameters = _parameters(settings)
    part = parameters.get("partial_rotary_factor") or settings.get("partial_rotary_factor") or 1.0
    return int(head_dim * float(part))


def read_rope(settings: Mapping[str, Any], dim: int) -> Rope:
    """The rotary positions of a model with one kind. `dim`: the rotated dimensions of a head."""
    parameters = _parameters(settings)
    if kinds := [key for key, value in parameters.items() if isinstance(value, Mapping)]:
        raise BundleError(
            f"Rotary positions of several kinds ({', '.join(map(str, kinds))[:100]}) are supported only in Gemma 3. "
            "Use another model."
        )
    theta = float(parameters.get("rope_theta") or settings.get("rope_theta", 10000.0))
    rope = Rope(dim=dim, theta=theta)
    match kind := parameters.get("rope_type", parameters.get("type", "default")):
        case "default":
            return rope
        case "linear":
            return replace(rope, factors=(float(parameters["factor"]),) * (rope.dim // 2))
        case "llama3":
            wavelengths = [2 * math.pi * theta ** (2 * pair / rope.dim) for pair in range(rope.dim // 2)]
            return replace(rope, factors=tuple(_llama3_factor(parameters, length) for length in wavelengths))
        case "longrope" | "su":
            return _longrope(settings, parameters, rope)
        case "factors":  # of a GGUF file
            return replace(rope, factors=_numbers(parameters, "factors", rope))
    raise BundleError(
        f"Rotary scaling of type {str(kind)[:100]!r} is not supported. Only {', '.join(_KINDS)} are. Use a model "
        "without it, or serve it with its own program as a model with engine = 'upstream'."
    )


def require_positions(ropes: Iterable[Rope], head_dim: int) -> None:
    """Raises ValueError for rotary positions that are no numbers, or of more dimensions than a head has."""
    for rope in ropes:
        if not (0 < rope.dim <= head_dim and 0 < rope.theta < math.inf and 0 < rope.amplitude < math.inf):
            raise ValueError(f"rotary positions of {rope.dim} numbers with base {rope.theta:g}")
        if not all(0 < factor < math.inf for factor in (*rope.factors, *rope.long_factors)):
            raise ValueError("a factor of the rotary positions is not a positive number")


def _parameters(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    return found


def _longrope(settings: Mapping[str, Any], parameters: Mapping[str, Any], rope: Rope) -> Rope:
    """Factors for short and long contexts. The amplitude grows with the context that the model was extended to."""
    key = "original_max_position_embeddings"
    original = int(parameters.get(key) or settings[key])
    extended = float(parameters.get("factor") or int(settings["max_position_embeddings"]) / original)
    amplitude = math.sqrt(1 + math.log(extended) / math.log(original)) if extended > 1 else 1.0
    return replace(
        rope,
        factors=_numbers(parameters, "short_factor", rope),
        long_factors=_numbers(parameters, "long_factor", rope),
        original_context=original,
        amplitude=float(parameters.get("attention_factor") or amplitude),
    )


def _numbers(parameters: Mapping[str, Any], key: str, rope: Rope) -> tuple[float, ...]:
    """One factor for each frequency. Raises ValueError for another count."""
    numbers = tuple(float(factor) for factor in parameters[key])
    if len(numbers) != rope.dim // 2:
        raise ValueError(f"{key} has {len(numbers)} numbers instead of {rope.dim // 2}")
    return numbers


def _llama3_factor(rope: Mapping[str, Any], wavelength: float) -> float:
    """The published rule: `factor` for long waves, 1 for short waves, a value between them for the others."""
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(rope["original_max_position_embeddings"]) / wavelength
    blend = min(max((turns - low) / (high - low), 0.0), 1.0)
    return 1 / ((1 - blend) / factor + blend)
