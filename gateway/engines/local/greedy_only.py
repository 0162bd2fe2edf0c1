"""What a model without a known scale of its logits cannot do: everything that needs more than their order."""

from __future__ import annotations

from gateway.engines.base import Capability
from gateway.errors import UnsupportedParameter
from gateway.generation import Generation
from gateway.sampling import changed

CAPABILITIES: tuple[Capability, ...] = ("chat", "tools", "structured_outputs")
GREEDY = {"temperature": 0.0}  # for requests that do not choose
_NEED_SCALE = frozenset({"logit_bias", "repetition_penalty", "presence_penalty", "frequency_penalty", "dry_multiplier"})


def check_greedy_only(name: str, generation: Generation) -> None:
    """Raise UnsupportedParameter, with the parameter's name, if the request needs the scale of the logits.

    Args:
        name: of the model.
    """
    without = f"The bundle of the model '{name}' does not state the scale of its logits"
    if generation.sampling.temperature > 0:
        raise UnsupportedParameter(
            f"{without}, so it supports only temperature 0. Send `temperature: 0`, or set `temperature = 0` in the "
            "model's table in config.toml.",
            param="temperature",
        )
    used = [param for param in changed(generation.sampling) if param in _NEED_SCALE]
    if generation.logprobs is not None or generation.prompt_logprobs:
        used.append("logprobs")
    for param in used:
        raise UnsupportedParameter(f"{without}, so it does not support '{param}'. Remove it.", param=param)
