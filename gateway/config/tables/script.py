"""The answers of a model with engine = "scripted"."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from gateway.config.tables.scalars import Count, Delay, Natural


class Fault(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fault in the device call after `after` tokens of a choice (0: in the prefill)."""

    requests: tuple[Natural, ...] = ()  # the numbers of the requests with the fault, from 0; empty: every request
    after: Natural = 0  # tokens before the fault
    stall_s: Delay = 0.0  # added to the time of the call; `inf` hangs it until the watchdog ends it
    error: str = ""  # the class name of the GatewayError that the call raises
    driver_code: int = 0  # or: the call raises EngineFailed with this code of the NPU driver: 14001, -100301, ...
    message: str = ""  # of the error


class Script(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Request k gets item k of `replies`, `ttft_s` and `token_s`, each modulo the number of items.

    A word with the white space before it is one token.
    """

    #: The answers.
    replies: Annotated[tuple[str, ...], Meta(min_length=1)] = ("The capital of France is Paris.",)
    repeat: bool = False  # repeat the reply until `max_tokens`
    ttft_s: Delay | Annotated[tuple[Delay, ...], Meta(min_length=1)] = 0.0  # time of the prefill, one device call
    token_s: Delay | Annotated[tuple[Delay, ...], Meta(min_length=1)] = 0.0  # time of every token after the first
    faults: tuple[Fault, ...] = ()  # tables: see below
    prompt_tokens: Natural | None = None  # of every request; by default the number of words in its prompt
    cached_tokens: Natural = 0  # of the prompt, from the prefix cache
    context_length: Count = 4096  # in tokens
    #: "encoder": it makes embeddings from the hash of each text. "cross-encoder": the score of a pair is the share of
    #: the query's words that are in the document.
    kind: Literal["chat", "encoder", "cross-encoder"] = "chat"
    dimensions: Annotated[int, Meta(ge=1, le=65536)] = 8  # of an encoder's vectors
    load_s: Delay = 0.0  # time to load the model
    memory_mb: Natural = 0  # memory that the model counts for when it is loaded, in units of 1,000,000 bytes
    load_error: str = ""  # every load fails with this message
