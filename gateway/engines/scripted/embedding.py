"""The vectors and scores of a scripted encoder: the same for the same text, in every process."""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections.abc import Iterator

from gateway.embedding import Embedded, Inputs
from gateway.engines.base import Capability
from gateway.errors import ContextLengthExceeded, InvalidRequest

_WORD = re.compile(r"\w+|[^\w\s]")

#: By the script's `kind`.
CAPABILITIES: dict[str, tuple[Capability, ...]] = {
    "chat": ("chat", "tools", "logprobs"),
    "encoder": ("embeddings",),
    "cross-encoder": ("rerank",),
}

Tokens = str | tuple[int, ...]


def count_tokens(inputs: Inputs, longest: int) -> tuple[int, ...]:
    """The tokens of each text or pair: its words. Raises ContextLengthExceeded above `longest` without `truncate`."""
    counts = []
    for index, parts in enumerate(_parts(inputs)):
        count = sum(map(_count, parts))
        if not count:
            raise InvalidRequest(f"The text '{inputs.param}.{index}' is empty.", param=inputs.param)
        if count > longest and not inputs.truncate:
            raise ContextLengthExceeded(
                f"The text '{inputs.param}.{index}' has {count} tokens, and this model reads at most {longest}. "
                "Split it into shorter texts.",
                param=inputs.param,
            )
        counts.append(min(count, longest))
    return tuple(counts)


def embed(inputs: Inputs, tokens: tuple[int, ...], dimensions: int) -> Embedded:
    """A vector of length 1 from the hash of each text; the share of a query's words that the document has."""
    if inputs.pairs:
        return Embedded(tokens=tokens, scores=tuple(_score(query, document) for query, document in inputs.pairs))
    wanted = min(inputs.dimensions or dimensions, dimensions)
    rows = array("f")
    for text in inputs.texts:
        rows.extend(_vector(f"{inputs.purpose}{text}", dimensions, wanted))
    return Embedded(vectors=rows.tobytes(), dimensions=wanted, tokens=tokens)


def _parts(inputs: Inputs) -> Iterator[tuple[Tokens, ...]]:
    yield from ((text,) for text in inputs.texts)
    yield from inputs.pairs


def _count(text: Tokens) -> int:
    return len(_WORD.findall(text)) if isinstance(text, str) else len(text)


def _vector(text: str, dimensions: int, wanted: int) -> list[float]:
    digest = hashlib.shake_128(text.encode("utf-8", "replace")).digest(dimensions)
    numbers = [byte - 127.5 for byte in digest[:wanted]]
    length = math.sqrt(sum(number * number for number in numbers))
    return [number / length for number in numbers]


def _score(query: str, document: str) -> float:
    wanted, there = ({word.casefold() for word in _WORD.findall(text)} for text in (query, document))
    return len(wanted & there) / len(wanted) if wanted else 0.0
