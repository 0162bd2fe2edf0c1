"""SmolLM3: Llama, but each fourth layer has no rotary positions. llama.cpp's converter reorders the rows of q and k."""

from __future__ import annotations

from typing import Any

from gateway.builder.architectures.family import Family, Settings
from gateway.builder.architectures.windows import read_windows


def _read(settings: Settings) -> dict[str, Any]:
    layers = range(1, int(settings["num_hidden_layers"]) + 1)
    period = int(settings["no_rope_layer_interval"])
    rotates = settings.get("no_rope_layers") or [index % period for index in layers]
    slides = [not rotated for rotated in rotates]
    return {
        "rope_kinds": tuple(0 if rotated else None for rotated in rotates[: len(layers)]),
        "windows": read_windows(settings, () if settings.get("layer_types") else slides),
    }


SMOLLM3 = Family(
    name="smollm3",
    gguf="smollm3",
    read=_read,
    defaults={"no_rope_layer_interval": 4, "use_sliding_window": False, "rope_theta": 2_000_000.0},
    interleaved=True,
)
