"""The chunks of another server's answer, with checked types. A field that is not used is not read."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

_Index = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Byte = Annotated[int, Meta(ge=0, le=255)]
_MANY = 128  # choices, tool calls, or most likely tokens in one chunk
_TOKENS = 2048  # tokens with log-probabilities in one chunk

#: A value with a wrong type, or text that is not JSON.
MALFORMED = (ValueError, RecursionError)


class Function(Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class Call(Struct, frozen=True):
    index: _Index | None = None
    id: str | None = None
    function: Function | None = None


class Delta(Struct, frozen=True):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Annotated[list[Call], Meta(max_length=_MANY)] | None = None


class Choice(Struct, frozen=True):
    index: _Index | None = None
    delta: Delta | None = None  # of a chat
    text: str | None = None  # of a completion
    finish_reason: str | None = None
    stop_reason: Any = None  # vLLM: the stop string
    logprobs: Raw = Raw()  # decoded only for a request that has them


class Chunk(Struct, frozen=True):
    choices: Annotated[list[Choice], Meta(max_length=_MANY)] | None = None
    usage: Any = None  # a wrong count is not worth an answer
    error: Any = None


class Top(Struct, frozen=True):
    token: str
    logprob: float | None = None
    bytes: list[_Byte] | None = None


class Entry(Top, frozen=True):
    top_logprobs: Annotated[list[Top], Meta(max_length=_MANY)] | None = None


class Logprobs(Struct, frozen=True):
    """Of a chat (`content`), or of a completion (parallel lists)."""

    content: Annotated[list[Entry], Meta(max_length=_TOKENS)] | None = None
    tokens: Annotated[list[str], Meta(max_length=_TOKENS)] | None = None
    token_logprobs: Annotated[list[float | None], Meta(max_length=_TOKENS)] | None = None
    top_logprobs: list[Annotated[dict[str, float], Meta(max_length=_MANY)] | None] | None = None


_chunk = msgspec.json.Decoder(Chunk)
_logprobs = msgspec.json.Decoder(Logprobs | None)


def read_chunk(data: bytes) -> Chunk:
    """Raises one of MALFORMED."""
    return _chunk.decode(data)


def read_logprobs(data: Raw) -> Logprobs:
    """Raises one of MALFORMED."""
    return _logprobs.decode(data) or Logprobs()
