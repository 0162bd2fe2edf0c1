"""Embeddings and relevance scores: what is requested, and the event that answers it.

A request for them is a `Generation` whose prompt is `Inputs`. So it passes through the same lanes as a chat: queue,
breaker, forecast, deadline, usage and log. Its answer is `Embedded` in place of text.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Purpose = Literal["", "query", "document"]


class Inputs(Struct, frozen=True, tag="inputs", kw_only=True):
    """The texts of one request, or the pairs of texts that a cross-encoder scores; not both."""

    #: Texts, or token ids that the client made, with the special tokens of the model.
    texts: tuple[str | tuple[int, ...], ...] = ()
    #: (query, document).
    pairs: tuple[tuple[str, str], ...] = ()
    #: Selects the prefix that the model wants before a text. "": the model's default, for most models none.
    purpose: Purpose = ""
    #: Cut a text that is longer than the model reads; False: refuse it.
    truncate: bool = False
    #: The first n numbers of each vector, normalised again if the model normalises. 0: all.
    dimensions: int = 0
    #: The field of the request, for error messages.
    param: str = "input"

    @property
    def count(self) -> int:
        """The number of texts or pairs."""
        return len(self.texts) or len(self.pairs)


class EmbeddingRequest(Struct, frozen=True, kw_only=True):
    """One request for embeddings (`inputs`) or for scores (`pairs`). `Router.embed` answers it."""

    id: str
    model: str  # the name in the request
    inputs: tuple[str | tuple[int, ...], ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    purpose: Purpose = ""
    truncate: bool = False
    dimensions: int = 0
    param: str = "input"
    #: As the fields of Generation.
    timeout_s: float | None = None
    ttft_timeout_s: float | None = None
    keep_alive_s: float | None = None
    background: bool = False
    owner: str = ""
    endpoint: str = ""
    client: str = ""
    hops: tuple[str, ...] = ()
    traceparent: str = ""


class Embedded(Struct, frozen=True, tag="embedded", kw_only=True):
    """The answer to `Inputs`: one vector for each text, or one score for each pair, in their order.

    Args:
        vectors: float32, little-endian, one row of `dimensions` numbers for each text. `row` gives one of them.
        tokens: the tokens of each text or pair, with the special ones.
        scores: one for each pair, the higher the more relevant; the sigmoid of the logit, so 0 to 1.
    """

    vectors: bytes = b""
    dimensions: int = 0
    tokens: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    def row(self, index: int) -> memoryview[float]:
        """The numbers of text `index`: a view of format "f"; `list(row)` gives floats, `bytes(row)` the bytes."""
        size = 4 * self.dimensions
        return memoryview(self.vectors)[index * size : (index + 1) * size].cast("f")


class EmbeddingAnswer(Struct, frozen=True, kw_only=True):
    """What `Router.embed` returns. `model`: the one that answered, which can be a fallback."""

    model: str
    embedded: Embedded
    prompt_tokens: int
    device_s: float
    total_s: float
    load_s: float = 0.0  # until a model that was loaded for it was ready
    cut_texts: int = 0  # texts that were longer than the model reads
    fallback_cause: str = ""  # why the requested model did not answer; "": it did
    route: str = ""  # the header `x-gateway-route`
