"""The wire format of text completions, and of the small endpoints beside them that llama.cpp and vLLM have.

As in openai_types: field names as they are, unknown fields ignored, null means absent, ranges in the types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.routes.openai_api.wire import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ChatMessage,
    CompletionUsage,
    Count,
    GenerationFields,
    Json,
    ToolDefinition,
)

TokenId = Count
#: A text, several, the token ids of one, or of several.
PromptField = str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1)]


# ---- requests ------------------------------------------------------------------------------------------------------


class CompletionRequest(GenerationFields, kw_only=True):
    prompt: PromptField
    max_tokens: Count | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None


class TokenizeRequest(Struct, kw_only=True):
    """A text as `content` (llama.cpp) or `prompt` (vLLM), or a chat."""

    model: str | None = None
    content: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)] | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: Json | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Struct, kw_only=True):
    tokens: list[TokenId]
    model: str | None = None


class ApplyTemplateRequest(Struct, kw_only=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: Json | None = None


class EmbeddingRequest(Struct, kw_only=True):
    model: str | None = None


# ---- replies -------------------------------------------------------------------------------------------------------


class TextLogprobs(Struct, kw_only=True):
    """Lists of one length, an entry for each token; a prompt's first token has no log-probability."""

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
    """A whole reply, or a chunk of a stream."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    system_fingerprint: str
    object: Literal["text_completion"] = "text_completion"
    usage: CompletionUsage | UnsetType | None = UNSET


class TokenPiece(Struct, kw_only=True):
    """A token as llama.cpp shows it: its text, or its bytes where they are no text of their own."""

    id: int
    piece: str | list[int]


class Tokenized(Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: Sequence[int | TokenPiece]
    token_strs: list[str] | UnsetType = UNSET


class Detokenized(Struct, kw_only=True):
    """The text under llama.cpp's name and under vLLM's."""

    content: str
    prompt: str


class AppliedTemplate(Struct, kw_only=True):
    prompt: str
