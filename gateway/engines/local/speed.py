"""The chip that a model runs on, and its published speed there."""

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


def chip_title(ready: Ready) -> str:
    """The chips with the reported number: "Snapdragon X Elite / Snapdragon X Plus". "": no real NPU."""
    if ready.device != "npu" or ready.soc is None:
        return ""
    titles = [chip.title for chip in CHIPS if ready.soc in chip.soc_models]
    return " / ".join(titles) or f"chip {ready.soc}"
