"""Types that the wire formats of several APIs share. Ranges are part of the type, so the decoder enforces them."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

Json = dict[str, Any]

MAX_INT = 2**53  # the largest integer that JSON carries without loss; a value for a worker must fit in 64 bits
Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
AtLeastOne = Annotated[int, Meta(ge=1, le=MAX_INT)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Share = Annotated[float, Meta(ge=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=MAX_INT)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Repetition = Annotated[float, Meta(ge=0.01, le=100)]  # outside this range the logits overflow
Bias = Annotated[float, Meta(ge=-100, le=100)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
StopString = Annotated[str, Meta(min_length=1, max_length=4096)]
Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}\Z")]

#: Limits of lists that the gateway walks over for every request. A longer list would delay other requests.
MAX_MESSAGES = 10_000
MAX_TOOLS = 1_000
MAX_STOPS = 64
MAX_BIASES = 10_000
MAX_CHOICES = 1_000


class TopLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]


class TokenLogprobs(TopLogprob, kw_only=True):
    top_logprobs: list[TopLogprob]
