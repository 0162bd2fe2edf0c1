"""Reads which layers of a model see only the last positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.errors import BundleError

_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_windows(settings: Mapping[str, Any], slides: Sequence[bool] = ()) -> tuple[int, ...]:
    """The field `windows` of TransformerConfig.

    Args:
        slides: the layers with a window; empty: those that `layer_types` names, else all from `max_window_layers` on.
    """
    window = settings.get("sliding_window")
    if not window or not settings.get("use_sliding_window", True):
        return ()
    if int(window) >= int(settings["max_position_embeddings"]):
        return ()
    return tuple(int(window) if is_sliding else 0 for is_sliding in slides or _sliding_layers(settings))


def sliding_layers(settings: Mapping[str, Any], period: int) -> Sequence[bool]:
    """The layers that `layer_types` names, else all but each `period`-th."""
    layers = range(1, int(settings["num_hidden_layers"]) + 1)
    return _named(settings) or [index % period != 0 for index in layers]


def _sliding_layers(settings: Mapping[str, Any]) -> Sequence[bool]:
    first = int(settings.get("max_window_layers") or 0)
    return _named(settings) or [index >= first for index in range(int(settings["num_hidden_layers"]))]


def _named(settings: Mapping[str, Any]) -> Sequence[bool]:
    kinds = settings.get("layer_types") or ()
    for kind in kinds:
        if kind not in (_FULL, _SLIDING):
            raise BundleError(
                f"Layers of type {str(kind)[:100]!r} are not supported. Only {_FULL} and {_SLIDING} are. Use another "
                "model."
            )
    return [kind == _SLIDING for kind in kinds]
