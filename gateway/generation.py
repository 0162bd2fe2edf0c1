"""One request with every default applied, and the events that answer it.

Every API parses its requests to a `Generation`, and every engine reads it. Every engine emits `Event`s, and every API
renders them. No API depends on an engine, and no engine depends on an API.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from msgspec import Struct, field

from gateway.embedding import Embedded, Inputs
from gateway.sampling import Sampling

#: A `max_tokens` that is no limit: the engine reduces it to what the context has left.
UNLIMITED = 2**31 - 1

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls"]


class ToolCall(Struct, frozen=True):
    """A tool call of the model. `arguments` is JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True, kw_only=True):
    """One message of a chat, its text parts joined. `content` is None for a message that only has tool calls."""

    role: Role
    content: str | None = None
    reasoning: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Tool(Struct, frozen=True, kw_only=True):
    """A function that the model may call. `parameters` is its JSON schema."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False


class ToolChoice(Struct, frozen=True, kw_only=True):
    """`auto`: the model decides. `none`: no call. `required`: at least one call, one of `names` if there are names."""

    mode: Literal["auto", "none", "required"] = "auto"
    names: tuple[str, ...] = ()
    parallel: bool = True


#: A key of a schema, for the process that reads grammars: {"name": ..., "strict": ...}. Errors name the tool. A schema
#: that is not strict is loosened where no grammar can enforce it.
TOOL = "x-gateway-tool"


class Grammar(Struct, frozen=True, kw_only=True):
    """Constrained decoding: what the output must match. `source` is a JSON schema, a regular expression or Lark."""

    kind: Literal["json_object", "json_schema", "regex", "lark"]
    source: str = ""
    param: str = "response_format"  # the field of the request, for error messages


class Chat(Struct, frozen=True, tag="chat", kw_only=True):
    """A conversation. The model's own chat template renders it."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    reasoning_effort: str | None = None
    #: More variables for the template (`chat_template_kwargs`, for example {"enable_thinking": false}).
    template_kwargs: dict[str, Any] = field(default_factory=dict)


class Text(Struct, frozen=True, tag="text"):
    """Text without a template. With a `suffix` the model fills in the middle."""

    text: str
    suffix: str | None = None


class TokenIds(Struct, frozen=True, tag="tokens"):
    """Token ids that the client made."""

    ids: tuple[int, ...]


Prompt = Chat | Text | TokenIds  # of a request for text


class Generation(Struct, frozen=True, kw_only=True):
    """One complete request. A route makes it, a lane admits it, an engine answers it."""

    id: str
    model: str  # the name in the request
    prompt: Prompt | Inputs  # `Inputs`: the answer is vectors or scores
    sampling: Sampling = Sampling()
    max_tokens: int = 64  # the engine reduces it to what the context has left
    has_default_limit: bool = False  # `max_tokens` is not from the request
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    n: int = 1
    #: None: no log-probabilities. k: of each chosen token and of the k most likely tokens (0-20).
    logprobs: int | None = None
    #: Report the log-probabilities of the prompt's tokens too (`echo` with `logprobs`).
    prompt_logprobs: bool = False
    grammar: Grammar | None = None
    #: Text that the client expects in the answer, for speculative decoding.
    prediction: str | None = None
    #: Time limit of the whole answer in seconds; None: the configured one.
    timeout_s: float | None = None
    #: Time limit of the first token in seconds, after which the fallback answers; None: no limit.
    ttft_timeout_s: float | None = None
    #: The model is unloaded after this time without a request, in seconds; negative: never. None: as before.
    keep_alive_s: float | None = None
    #: Other requests run first, at every step.
    background: bool = False
    #: Leave out the oldest messages of a chat that does not fit into the context; False: refuse it.
    truncation: bool = False
    #: The name of the API key. Requests of different owners never share cached prefixes.
    owner: str = ""
    #: The path of the API that it came to, for records of the request.
    endpoint: str = ""
    #: Who sent it (server/identity.py). Clients take turns in the queue, on the device and in the grammar compiler.
    client: str = ""
    #: The upstream engines, of any gateway, that the request passed before.
    hops: tuple[str, ...] = ()
    #: The header of W3C Trace Context; "": the request has none.
    traceparent: str = ""


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
    device_s: float = 0.0  # in device calls that have ended
    shared_s: float = 0.0  # in device calls of all requests while this one waited for its first token
    prompt_s: float = 0.0  # the part of `device_s` up to the first token
    began_at: float | None = None  # when the device began with the request
    first_token_at: float | None = None  # when the first token was counted: the one clock for time to first token
    call_since: float | None = None  # start of the call that may work for this request; None: no call is running
    #: Seconds of the device's running call, 0 if none is running. None: the engine cannot see it.
    call_s: Callable[[], float] | None = None
    drafts: dict[str, tuple[int, int]] = field(default_factory=dict)  # source -> tokens of drafts, right ones of them

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that the device had to compute."""
        return self.prompt_tokens - self.cached_tokens

    def begin(self) -> None:
        """The device begins with the request."""
        self.began_at = self.clock()

    def call_started(self) -> None:
        self.call_since = self.clock()

    def call_cut(self) -> None:
        """The request ends during a call: the seconds until now count."""
        self.device_s = self.device_s_at(self.clock())
        self.call_since = None

    def call_ended(self) -> None:
        self.call_since = None

    def count_token(self) -> None:
        """Count one completion token; the first one sets `first_token_at` and `prompt_s`."""
        self.completion_tokens += 1
        if self.first_token_at is None:
            self.first_token_at, self.prompt_s = self.clock(), self.device_s

    def drafted(self, source: str, tokens: int, right: int) -> None:
        """Count a draft that was verified."""
        before, right_before = self.drafts.get(source, (0, 0))
        self.drafts[source] = before + tokens, right_before + right

    def count_result(self) -> None:
        """The vectors or scores are there: an answer without tokens, whose device time is all of the prompt."""
        self.first_token_at, self.prompt_s = self.clock(), self.device_s

    def device_s_at(self, now: float) -> float:
        """Device seconds up to `now`, with the call that is running."""
        if self.call_since is None:
            return self.device_s
        since_s = now - self.call_since
        return self.device_s + (since_s if self.call_s is None else min(since_s, self.call_s()))
