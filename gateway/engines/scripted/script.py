"""What a scripted engine does, as the `[models.NAME.script]` table says it, and the published timing of real chips."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Struct

from gateway.config import ScriptedModel
from gateway.errors import ConfigError, GatewayError, error_class


class Fault(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Something that goes wrong in the device call after `after` tokens of a choice (0: in the prompt's)."""

    requests: tuple[int, ...] = ()  # which, counted from 0; none named: every one
    after: int = 0
    stall_s: float = 0.0  # the call takes so much longer; `inf` hangs until the watchdog
    error: str = ""  # then a GatewayError of this name is raised
    driver_code: int = 0  # or EngineFailed with the NPU driver's code: 14001, -100301, ...
    message: str = ""


class Script(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Request k gets item k of `replies`, `ttft_s` and `token_s`, from the beginning again when they run out.

    A word and the white space before it is one token. `repeat` says the reply over and over until `max_tokens`.
    """

    replies: tuple[str, ...] = ("The capital of France is Paris.",)
    repeat: bool = False
    ttft_s: float | tuple[float, ...] = 0.0  # the whole prompt, in one device call
    token_s: float | tuple[float, ...] = 0.0  # every token after the first
    faults: tuple[Fault, ...] = ()
    prompt_tokens: int | None = None  # None: the words of the prompt
    cached_tokens: int = 0
    context_length: int = 4096
    load_s: float = 0.0
    load_error: str = ""  # the start fails with this message


class Chip(Struct, frozen=True, kw_only=True):
    """Llama 3.2 3B (w4a16, context 4096) as published: a prompt is computed in passes, a token in a step."""

    pass_s: float
    step_s: float
    pass_width: int = 128


CHIPS = {
    "x-elite": Chip(pass_s=0.131, step_s=1 / 19.7),
    "x2-elite": Chip(pass_s=0.064, step_s=1 / 43.2),
}


class Timing(Struct, frozen=True, kw_only=True):
    """The device calls of a request: `pass_s` for every `pass_width` prompt tokens, `step_s` for every later token."""

    pass_s: float
    step_s: float
    pass_width: float = math.inf  # the whole prompt at once

    def passes(self, prompt_tokens: int) -> int:
        return max(1, math.ceil(prompt_tokens / self.pass_width))


def timing(model: ScriptedModel, script: Script, request: int) -> Timing:
    """How long the device takes for request number `request`."""
    if model.simulate:
        chip = CHIPS[model.simulate]
        return Timing(pass_s=chip.pass_s, step_s=chip.step_s, pass_width=chip.pass_width)
    return Timing(pass_s=_in_turn(script.ttft_s, request), step_s=_in_turn(script.token_s, request))


def read_script(name: str, model: ScriptedModel) -> Script:
    """The checked script of model `name`. Raises ConfigError naming the key at fault."""
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
    """What the fault raises, if it raises."""
    if fault.driver_code:
        return error_class("EngineFailed")(fault.message or f"The NPU driver reported error {fault.driver_code}.")
    if fault.error:
        return error_class(fault.error)(fault.message or "The script says that this request fails.")
    return None


def _convert(name: str, table: dict[str, Any]) -> Script:
    try:
        return msgspec.convert(table, Script)
    except msgspec.ValidationError as error:
        raise ConfigError(f"models.{name}.script: {error}") from error


def _in_turn(seconds: float | tuple[float, ...], request: int) -> float:
    return seconds[request % len(seconds)] if isinstance(seconds, tuple) else seconds
