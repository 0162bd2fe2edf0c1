"""One request with every default applied."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field

from gateway.embedding import Inputs
from gateway.sampling import Sampling

#: A `max_tokens` that is no limit: the engine reduces it to what the context has left.
UNLIMITED = 2**31 - 1

Role = Literal["system", "user", "assistant", "tool"]


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
    #: The client gets the whole answer at once: until then, another server can begin it again.
    is_whole: bool = False
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
