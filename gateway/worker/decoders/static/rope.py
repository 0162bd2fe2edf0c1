"""The rotary position table of a Genie bundle: cosines and sines for each position."""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from gateway.errors import BundleError
from gateway.worker.decoders.static.cache import Array

_WIDEST = 4096  # half of a head


class _Scaling(Struct, rename="kebab", kw_only=True):
    rope_type: str = "default"
    factor: Annotated[float, Meta(gt=0)] = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: Annotated[int, Meta(ge=2)] = 8192
    short_factor: list[Annotated[float, Meta(gt=0)]] = []
    long_factor: list[Annotated[float, Meta(gt=0)]] = []


class _Encoding(Struct, rename="kebab", kw_only=True):
    type: str = "rope"
    rope_dim: Annotated[int, Meta(ge=1, le=_WIDEST)]
    rope_theta: Annotated[float, Meta(gt=0)] = 10000.0
    rope_scaling: _Scaling | None = None


def rope_table(config: dict[str, Any], positions: int, where: str) -> tuple[Array, Array]:
    """Cosines and sines of the positions 0..positions-1, each float64 (positions, half of a head's rotated size).

    Args:
        config: the bundle's configuration for Genie.
        positions: the longest context.
    Raises BundleError for a kind of position encoding that is not known, or values that no model has.
    """
    encoding = _encoding(config, where)
    if encoding.type != "rope":
        raise BundleError(f"{where}: its position encoding is {encoding.type!r}. Only Genie runs it: engine = 'genie'.")
    frequencies = encoding.rope_theta ** -(np.arange(encoding.rope_dim) / encoding.rope_dim)
    magnitude = 1.0
    scaling = encoding.rope_scaling or _Scaling()
    match scaling.rope_type:
        case "default":
            pass
        case "llama3":
            frequencies = _llama3(frequencies, scaling)
        case "longrope":
            with np.errstate(all="ignore"):
                frequencies, magnitude = _longrope(frequencies, scaling, positions, where)
        case other:
            raise BundleError(f"{where}: its rope scaling is {other!r}. Only Genie runs it: engine = 'genie'.")
    with np.errstate(all="ignore"):
        angles = np.outer(np.arange(positions), frequencies)
    if not np.isfinite(angles).all():
        raise BundleError(f"{where}: its position encoding gives values that are no numbers.")
    return np.cos(angles) * magnitude, np.sin(angles) * magnitude


def _encoding(config: dict[str, Any], where: str) -> _Encoding:
    engine = config["dialog"]["engine"]
    stated = engine["model"].get("positional-encoding")
    htp = engine["backend"].get("QnnHtp") or {}
    try:
        if stated is not None:
            return msgspec.convert(stated, _Encoding)
        return msgspec.convert({"rope-dim": htp["pos-id-dim"], "rope-theta": htp.get("rope-theta", 10000)}, _Encoding)
    except (KeyError, msgspec.ValidationError) as error:
        raise BundleError(f"{where}: its configuration states no readable position encoding: {error}.") from error


def _llama3(frequencies: Array, scaling: _Scaling) -> Array:
    """Low frequencies are divided by `factor`, high ones stay, and those between are interpolated."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    share = np.clip(smooth, 0.0, 1.0)
    return frequencies * (share + (1 - share) / scaling.factor)


def _longrope(frequencies: Array, scaling: _Scaling, positions: int, where: str) -> tuple[Array, float]:
    """Each frequency has its own divisor, of the list for short or for long contexts. All values get larger."""
    original = scaling.original_max_position_embeddings
    factors = scaling.long_factor if positions > original else scaling.short_factor
    if len(factors) != len(frequencies):
        raise BundleError(f"{where}: its rope scaling has {len(factors)} factors for {len(frequencies)} frequencies.")
    magnitude = math.sqrt(1 + math.log(scaling.factor) / math.log(original)) if scaling.factor > 1 else 1.0
    return frequencies / np.array(factors), magnitude
