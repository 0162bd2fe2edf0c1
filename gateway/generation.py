"""One request with every default resolved, and the events that answer it.

`Generation` is what every endpoint translates to and every engine reads; `Event` is what every engine yields and every
endpoint renders. No endpoint knows an engine, no engine knows an endpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct, field

from gateway.sampling import Sampling

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]


class ToolCall(Struct, frozen=True):
    """A call the model made: `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True, kw_only=True):
    """One turn, its text parts already joined. `content` None: an assistant turn that only called tools."""

    role: Role
    content: str | None = None
    reasoning: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(Struct, frozen=True, kw_only=True):
    """A function the model may call; `parameters` is its JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False


class ToolChoice(Struct, frozen=True, kw_only=True):
    """`auto`: the model decides; `none`: no call; `required`: at least one call, of `names` if given."""

    mode: Literal["auto", "none", "required"] = "auto"
    names: tuple[str, ...] = ()
    parallel: bool = True


class Grammar(Struct, frozen=True, kw_only=True):
    """What the output must match. `source` is a JSON schema text, a regular expression or a Lark grammar."""

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    source: str = ""
    param: str = "response_format"  # the request's field that asked for it


class Chat(Struct, frozen=True, tag="chat", kw_only=True):
    """A conversation, rendered through the model's own chat template."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    reasoning_effort: str | None = None
    #: Extra variables for the template (`chat_template_kwargs`, e.g. {"enable_thinking": false}).
    template_kwargs: dict[str, Any] = field(default_factory=dict)


class Text(Struct, frozen=True, tag="text"):
    """Raw text without a template; `suffix` asks for fill-in-the-middle."""

    text: str
    suffix: str | None = None


class TokenIds(Struct, frozen=True, tag="tokens"):
    """Token ids as the client counted them."""

    ids: tuple[int, ...]


Prompt = Chat | Text | TokenIds


class Generation(Struct, frozen=True, kw_only=True):
    """One request, complete. Built by a route, admitted by a lane, answered by an engine."""

    id: str
    model: str  # the name the client asked for
    prompt: Prompt
    sampling: Sampling = Sampling()
    max_tokens: int = 64  # clamped by the engine to what the context leaves
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    n: int = 1
    #: None: no log-probabilities. k: those of each chosen token and of the k most likely ones (0-20).
    logprobs: int | None = None
    #: Also report the log-probabilities of the prompt's own tokens (`echo` with `logprobs`).
    prompt_logprobs: bool = False
    grammar: Grammar | None = None
    #: Text the client expects in the answer; verified several tokens at a time.
    prediction: str | None = None
    #: Seconds the client is ready to wait for the whole answer; None: the configured one.
    timeout_s: float | None = None
    #: Seconds within which the first token must come, else the fallback is asked; None: no such limit.
    ttft_timeout_s: float | None = None
    #: Yields to other requests at every step.
    background: bool = False
    #: Requests of different owners never share cached prompt prefixes (the name of the API key).
    owner: str = ""


class TokenLogprob(Struct, frozen=True):
    """Log-softmax of the raw logits at one position."""

    token: str
    bytes: tuple[int, ...]
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    id: int = -1


class Usage(Struct, frozen=True, kw_only=True):
    """Token counts, as the tokenizer counts them. `completion_tokens` is summed over the choices."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Timings(Struct, frozen=True, kw_only=True):
    """How long a request took, in seconds from its acceptance by the lane. Only the lane makes these."""

    queue_s: float = 0.0  # in the admission queue, and in the engine until the device began
    ttft_s: float | None = None  # time to first token; None: no token was generated
    device_s: float = 0.0  # inside device calls for this request
    total_s: float = 0.0


class Started(Struct, frozen=True, tag="started", kw_only=True):
    """The device has begun: the prompt is counted and its cached part known. Comes first, once."""

    prompt_tokens: int
    cached_tokens: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


class TextDelta(Struct, frozen=True, tag="text"):
    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class ReasoningDelta(Struct, frozen=True, tag="reasoning"):
    text: str
    choice: int = 0


class ToolCallDelta(Struct, frozen=True, tag="tool_call", kw_only=True):
    """`name` and `id` come with a call's first delta, later ones only carry more of its arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    choice: int = 0


class ChoiceFinished(Struct, frozen=True, tag="choice_finished"):
    """One choice is complete; every choice has exactly one of these, before `Finished`."""

    reason: FinishReason
    choice: int = 0
    #: The stop string that matched, when one did (Anthropic's and vLLM's `stop_sequence`).
    stop: str | None = None


class Finished(Struct, frozen=True, tag="finished", kw_only=True):
    """The end of the request: last, once. A request that fails raises a GatewayError instead."""

    usage: Usage
    timings: Timings = Timings()


Event = Started | TextDelta | ReasoningDelta | ToolCallDelta | ChoiceFinished | Finished


class Meter(Struct, kw_only=True):
    """The device time and the tokens of one running request. The engine writes it, the lane reads it at any time.

    The circuit breaker judges by it while a device call still runs, so an engine updates it at every call.

    Args:
        clock: seconds, monotonic. All times here are times of this clock.
    """

    clock: Callable[[], float] = time.monotonic
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    device_s: float = 0.0  # in device calls that have returned
    prompt_s: float = 0.0  # the part of `device_s` up to the first token
    began_at: float | None = None  # when the device began with the request
    first_token_at: float | None = None  # when the first token was counted: the one clock for time to first token
    call_since: float | None = None  # start of the call that may work for this request; None: no call is running

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that the device had to compute."""
        return self.prompt_tokens - self.cached_tokens

    def begin(self) -> None:
        """The device begins with the request."""
        self.began_at = self.clock()

    def call_started(self) -> None:
        self.call_since = self.clock()

    def call_ended(self) -> None:
        self.call_since = None

    def count_token(self) -> None:
        """Count one completion token; the first one sets `first_token_at` and `prompt_s`."""
        self.completion_tokens += 1
        if self.first_token_at is None:
            self.first_token_at, self.prompt_s = self.clock(), self.device_s

    def device_s_at(self, now: float) -> float:
        """Device seconds up to `now`, with the call that is running."""
        return self.device_s + (now - self.call_since if self.call_since is not None else 0.0)
