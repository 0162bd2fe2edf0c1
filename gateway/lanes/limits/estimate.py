"""The tokens that a request can need, before its prompt is tokenized: for the limits of an API key."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from gateway.config.limits import OPEN_ANSWER
from gateway.embedding import Inputs
from gateway.generation import UNLIMITED, Chat, Generation, Prompt, Text, TokenIds

_BYTES = 4  # of text in UTF-8 for one token
_SAMPLE = 4096  # characters


class Need(Struct, frozen=True):
    """Tokens of one generation."""

    prompt: int = 0
    answer: int = 0  # of all choices

    @property
    def total(self) -> int:
        return self.prompt + self.answer


def need_of(generation: Generation, context_length: int) -> Need:
    """What the generation can need. `context_length`: of the model; 0: unknown."""
    if isinstance(generation.prompt, Inputs):
        return Need(sum(_within(tokens, context_length) for tokens in _sizes(generation.prompt)))
    prompt = _within(_size(generation.prompt), context_length)
    answer = OPEN_ANSWER if generation.max_tokens == UNLIMITED else generation.max_tokens
    if context_length:
        answer = min(answer, max(1, context_length - prompt))
    return Need(prompt, generation.n * answer)


def _within(tokens: int, context_length: int) -> int:
    return min(tokens, context_length) if context_length else tokens


def _sizes(inputs: Inputs) -> Iterator[int]:
    for text in inputs.texts:
        yield _of_bytes(_length(text)) if isinstance(text, str) else len(text)
    for pair in inputs.pairs:
        yield _of_bytes(sum(map(_length, pair)))


def _size(prompt: Prompt) -> int:
    match prompt:
        case TokenIds(ids):
            return len(ids)
        case Text(text, suffix):
            return _of_bytes(_length(text) + _length(suffix or ""))
        case Chat():
            return _of_bytes(sum(map(_length, _texts(prompt))))


def _texts(chat: Chat) -> Iterator[str]:
    for message in chat.messages:
        yield message.content or ""
        yield message.reasoning or ""
        yield from (call.name + call.arguments for call in message.tool_calls)
    for tool in chat.tools:
        yield tool.name + tool.description + msgspec.json.encode(tool.parameters).decode()


def _length(text: str) -> int:
    """The bytes of the text in UTF-8; of a long text an estimate from its start, because this is on the event loop."""
    if text.isascii():
        return len(text)
    start = text[:_SAMPLE]
    return len(start.encode("utf-8", "surrogatepass")) * len(text) // len(start)


def _of_bytes(length: int) -> int:
    return math.ceil(length / _BYTES)
