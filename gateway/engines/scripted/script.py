"""The timing and the errors of a scripted engine, and the published timing of real chips."""

from __future__ import annotations

import math

from msgspec import Struct

from gateway.config.tables import Fault, ScriptedModel
from gateway.errors import GatewayError, error_class


class Chip(Struct, frozen=True, kw_only=True):
    """Published figures of Llama 3.2 3B (w4a16, context 4096): prefill in chunks, then one step for each token."""

    chunk_s: float
    step_s: float
    chunk_width: int = 128


CHIPS = {
    "x-elite": Chip(chunk_s=0.131, step_s=1 / 19.7),
    "x2-elite": Chip(chunk_s=0.064, step_s=1 / 43.2),
}


class Timing(Struct, frozen=True, kw_only=True):
    """Device calls of a request: `chunk_s` for each `chunk_width` prompt tokens, `step_s` for each later token."""

    chunk_s: float
    step_s: float
    chunk_width: float = math.inf  # the whole prompt in one call

    def chunks(self, prompt_tokens: int) -> int:
        return max(1, math.ceil(prompt_tokens / self.chunk_width))


def timing(model: ScriptedModel, request: int) -> Timing:
    """The device times of request number `request`."""
    if model.simulate is not None:
        chip = CHIPS[model.simulate]
        return Timing(chunk_s=chip.chunk_s, step_s=chip.step_s, chunk_width=chip.chunk_width)
    script = model.script
    return Timing(chunk_s=_in_turn(script.ttft_s, request), step_s=_in_turn(script.token_s, request))


def error_of(fault: Fault) -> GatewayError | None:
    """The exception of the fault, if it has one. An EngineFailed is the device's: `call` raises it in a device call."""
    if fault.driver_code:
        return error_class("EngineFailed")(fault.message or f"The NPU driver reported error {fault.driver_code}.")
    if fault.error:
        return error_class(fault.error)(fault.message or "The script makes this request fail.")
    return None


def _in_turn(seconds: float | tuple[float, ...], request: int) -> float:
    return seconds[request % len(seconds)] if isinstance(seconds, tuple) else seconds
