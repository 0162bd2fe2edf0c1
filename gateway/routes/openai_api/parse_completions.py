"""A `CompletionRequest` becomes one `Generation` for each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from gateway.config.tables import Defaults
from gateway.errors import InvalidRequest
from gateway.generation import Generation, Text, TokenIds
from gateway.routes.openai_api.parse import check_stream_options, is_background, min_tokens_of
from gateway.routes.openai_api.parse_grammar import grammar_of
from gateway.routes.openai_api.wire_completions import CompletionRequest
from gateway.routes.parse import limit_of, stop_of
from gateway.sampling import sampling_of

MAX_TOKENS = 16  # OpenAI's default of this endpoint; a chat has another
MAX_PROMPTS = 1_000  # in one request

T = TypeVar("T")


def completion_generations(request: CompletionRequest, defaults: Defaults, *, id: str) -> list[Generation]:
    """Raises InvalidRequest; its `param` names the field."""
    check_stream_options(request)
    if request.echo and request.suffix:
        raise InvalidRequest("'echo' and 'suffix' cannot be combined.", param="suffix")
    best_of, max_tokens = _best_of(request), _max_tokens(request)
    is_ranked = best_of > (request.n or 1)
    return [
        Generation(
            id=id,
            model=request.model or "",
            prompt=prompt,
            sampling=sampling_of("openai", request, defaults),
            max_tokens=max_tokens,
            has_default_limit=request.max_tokens is None,
            min_tokens=min_tokens_of(request, max_tokens),
            ignore_eos=bool(request.ignore_eos),
            stop=stop_of(request.stop),
            n=best_of,
            logprobs=0 if is_ranked and request.logprobs is None else request.logprobs,
            prompt_logprobs=bool(request.echo) and request.logprobs is not None,
            grammar=grammar_of(request),
            background=is_background(request),
        )
        for prompt in prompts_of(request)
    ]


def prompts_of(request: CompletionRequest) -> list[Text | TokenIds]:
    """The prompts of the request, in order. Raises InvalidRequest for a list of mixed types."""
    field, suffix = request.prompt, request.suffix
    if isinstance(field, list) and len(field) > MAX_PROMPTS and not isinstance(field[0], int):
        raise InvalidRequest(f"'prompt' has more than {MAX_PROMPTS} prompts.", param="prompt")
    match field:
        case str():
            return [Text(field, suffix or None)]
        case [int(), *_]:
            prompts: list[Text | TokenIds] = [TokenIds(tuple(_all(int, field)))]
        case [str(), *_]:
            return [Text(text, suffix or None) for text in _all(str, field)]
        case _:
            prompts = [TokenIds(tuple(ids)) for ids in _all(list, field)]
    if suffix:
        raise InvalidRequest("'suffix' needs a prompt of text, not of token ids.", param="suffix")
    return prompts


def _all(kind: type[T], items: Sequence[object]) -> list[T]:
    found = [item for item in items if isinstance(item, kind)]
    if len(found) < len(items):
        raise InvalidRequest("'prompt' mixes texts, token ids and lists: send one kind.", param="prompt")
    return found


def _max_tokens(request: CompletionRequest) -> int:
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("'max_tokens': 0 is only allowed with 'echo': true.", param="max_tokens")
    return 0 if request.max_tokens == 0 else limit_of(request.max_tokens, MAX_TOKENS, "max_tokens")[0]


def _best_of(request: CompletionRequest) -> int:
    n = request.n or 1
    best_of = request.best_of or n
    if best_of < n:
        raise InvalidRequest(f"'best_of' must be at least 'n', which is {n}.", param="best_of")
    if best_of > n and request.stream:
        raise InvalidRequest(
            "'best_of' above 'n' cannot be streamed: the choices are ranked at the end.", param="best_of"
        )
    return best_of
