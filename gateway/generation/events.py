"""The events that answer a request."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from gateway.embedding import Embedded

FinishReason = Literal["stop", "length", "tool_calls"]


class TokenLogprob(Struct, frozen=True, gc=False):
    """The log-softmax of the raw logits for one token, and for the `top` most likely tokens at its position.

    There can be a million of them, none in a cycle: the garbage collector, which stops all threads, skips them.
    """

    token: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    id: int | None = None  # None: another server did not send it


class Usage(Struct, frozen=True, kw_only=True):
    """Token counts. `completion_tokens` is the sum over the choices."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Timings(Struct, frozen=True, kw_only=True):
    """How long a request took, in seconds from its acceptance by the lane. Only the lane makes these."""

    load_s: float = 0.0  # until a model that was loaded for it was ready; 0: the model was loaded before
    queue_s: float = 0.0  # after it, in the admission queue, and in the engine until the device began
    ttft_s: float | None = None  # time to first token; None: no token was generated
    device_s: float = 0.0  # inside device calls for this request
    total_s: float = 0.0


class Started(Struct, frozen=True, tag="started", kw_only=True):
    """The device has begun. The prompt is counted, and its cached part is known. The first event, once."""

    prompt_tokens: int
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


class TextDelta(Struct, frozen=True, tag="text", gc=False):
    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class ReasoningDelta(Struct, frozen=True, tag="reasoning"):
    text: str
    choice: int = 0


class ToolCallDelta(Struct, frozen=True, tag="tool_call", kw_only=True):
    """A part of a tool call. The first delta of a call has `name` and `id`; later ones only have more `arguments`."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    choice: int = 0


class ChoiceFinished(Struct, frozen=True, tag="choice_finished"):
    """The end of one choice. Each choice has exactly one, before `Finished`."""

    reason: FinishReason
    choice: int = 0
    #: The stop string that matched, if one did.
    stop: str | None = None


class Finished(Struct, frozen=True, tag="finished", kw_only=True):
    """The end of the request. The last event, once. A request that fails raises a GatewayError instead."""

    usage: Usage
    timings: Timings = Timings()


Event = Started | TextDelta | ReasoningDelta | ToolCallDelta | Embedded | ChoiceFinished | Finished
