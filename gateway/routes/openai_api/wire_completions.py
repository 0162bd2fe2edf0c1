"""OpenAI's wire format of text completions. See `wire.py` for the rules."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.routes.openai_api.wire import CompletionUsage, GenerationFields
from gateway.routes.wire import Count, TopLogprobs
from gateway.sampling import MAX_INT

TokenId = Count
#: A text, a list of texts, a list of token ids, or a list of lists of token ids.
PromptField = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]


# ---- requests ------------------------------------------------------------------------------------------------------


class CompletionRequest(GenerationFields, kw_only=True):
    prompt: PromptField
    max_tokens: Annotated[int, Meta(ge=-1, le=MAX_INT)] | None = None  # -1: no limit but the context
    suffix: str | None = None
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None


# ---- replies -------------------------------------------------------------------------------------------------------


class TextLogprobs(Struct, kw_only=True):
    """Lists of equal length with one entry for each token. The first token of a prompt has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(Struct, kw_only=True):
    text: str
    index: int
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None


class Completion(Struct, kw_only=True):
    """A whole reply or a chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    system_fingerprint: str
    object: Literal["text_completion"] = "text_completion"
    usage: CompletionUsage | UnsetType | None = UNSET
