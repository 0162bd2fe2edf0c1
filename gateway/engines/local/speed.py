"""The published speed of a pulled model, if it is for the NPU that the model runs on."""

from __future__ import annotations

from gateway.bundles.origin import Origin
from gateway.qnn.chips import CHIPS
from gateway.worker.frames import Ready


def published_speed(origin: Origin | None, ready: Ready) -> float | None:
    """Tokens per second. None: unknown, published for another chip, or the model does not run on a real NPU."""
    if origin is None or ready.device != "npu":
        return None
    numbers = next((chip.soc_models for chip in CHIPS if chip.name == origin.chip), ())
    is_same_chip = ready.soc is None or ready.soc in numbers
    return origin.published_tokens_per_s if is_same_chip else None
