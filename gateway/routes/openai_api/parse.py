"""Fields that chat and text completions share."""

from __future__ import annotations

from gateway.errors import InvalidRequest
from gateway.routes.openai_api.wire import GenerationFields


def min_tokens_of(request: GenerationFields, max_tokens: int) -> int:
    if request.min_tokens is not None and request.min_tokens > max_tokens:
        raise InvalidRequest(f"'min_tokens' is larger than the limit of {max_tokens} tokens.", param="min_tokens")
    return request.min_tokens or 0


def check_stream_options(request: GenerationFields) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")


def wants_usage(request: GenerationFields) -> bool:
    """True if the stream ends with a chunk that has the token counts."""
    return bool(request.stream_options and request.stream_options.include_usage)


def is_background(request: GenerationFields) -> bool:
    return request.service_tier == "flex"
