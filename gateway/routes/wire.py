"""Types that the wire formats of several APIs share. Ranges are part of the type, so the decoder enforces them."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from gateway.sampling import MAX_INT

Json = dict[str, Any]

Count = Annotated[int, Meta(ge=0, le=MAX_INT)]
AtLeastOne = Annotated[int, Meta(ge=1, le=MAX_INT)]
#: The token limit of an answer. -1: no limit but the context. `limit_of` of parse.py refuses 0.
Limit = Annotated[int, Meta(ge=-1, le=MAX_INT, extra_json_schema={"not": {"const": 0}})]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
StopString = Annotated[str, Meta(max_length=4096)]  # an empty one has no effect
#: Of a tool. OpenAI allows 64 characters and no point; tools of MCP servers have both.
ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.:/-]{1,128}\Z")]

#: Limits of lists that the gateway walks over for every request. A longer list would delay other requests.
MAX_MESSAGES = 10_000
MAX_TOOLS = 1_000
MAX_STOPS = 64
MAX_CHOICES = 1_000


class TopLogprob(Struct, kw_only=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]


class TokenLogprobs(TopLogprob, kw_only=True):
    top_logprobs: list[TopLogprob]
