"""The `[models.NAME.script]` table, and the published timing of real chips."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Struct

from gateway.config import ScriptedModel
from gateway.errors import ConfigError, GatewayError, error_class


class Fault(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fault in the device call after `after` tokens of a choice (0: in the prefill)."""

    requests: tuple[int, ...] = ()  # the numbers of the requests with the fault, from 0; empty: every request
    after: int = 0
    stall_s: float = 0.0  # added to the time of the call; `inf` hangs it until the watchdog ends it
    error: str = ""  # the name of the GatewayError that the call raises
    driver_code: int = 0  # or: the call raises EngineFailed with this code of the NPU driver: 14001, -100301, ...
    message: str = ""


class Script(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Request k gets item k of `replies`, `ttft_s` and `token_s`, each modulo the number of items.

    A word with the white space before it is one token. `repeat` repeats the reply until `max_tokens`.
    """

    replies: tuple[str, ...] = ("The capital of France is Paris.",)
    repeat: bool = False
    ttft_s: float | tuple[float, ...] = 0.0  # the prefill, one device call
    token_s: float | tuple[float, ...] = 0.0  # every token after the first
    faults: tuple[Fault, ...] = ()
    prompt_tokens: int | None = None  # None: the number of words in the prompt
    cached_tokens: int = 0
    context_length: int = 4096
    load_s: float = 0.0
    load_error: str = ""  # every load fails with this message


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


def timing(model: ScriptedModel, script: Script, request: int) -> Timing:
    """The device times of request number `request`."""
    if model.simulate:
        chip = CHIPS[model.simulate]
        return Timing(chunk_s=chip.chunk_s, step_s=chip.step_s, chunk_width=chip.chunk_width)
    return Timing(chunk_s=_in_turn(script.ttft_s, request), step_s=_in_turn(script.token_s, request))


def read_script(name: str, model: ScriptedModel) -> Script:
    """The checked script of model `name`. Raises ConfigError with the wrong key."""
    if model.simulate and model.simulate not in CHIPS:
        raise ConfigError(f"models.{name}.simulate: '{model.simulate}' is unknown; known are: {', '.join(CHIPS)}")
    script = _convert(name, model.script)
    for fault in script.faults:
        if fault.error and error_class(fault.error).__name__ != fault.error:
            raise ConfigError(f"models.{name}.script.faults: there is no error '{fault.error}'")
    if not script.replies or script.ttft_s == () or script.token_s == ():
        raise ConfigError(f"models.{name}.script: replies, ttft_s and token_s must not be empty")
    return script


def error_of(fault: Fault) -> GatewayError | None:
    """The exception of the fault, if it has one."""
    if fault.driver_code:
        return error_class("EngineFailed")(fault.message or f"The NPU driver reported error {fault.driver_code}.")
    if fault.error:
        return error_class(fault.error)(fault.message or "The script makes this request fail.")
    return None


def _convert(name: str, table: dict[str, Any]) -> Script:
    try:
        return msgspec.convert(table, Script)
    except msgspec.ValidationError as error:
        raise ConfigError(f"models.{name}.script: {error}") from error


def _in_turn(seconds: float | tuple[float, ...], request: int) -> float:
    return seconds[request % len(seconds)] if isinstance(seconds, tuple) else seconds
