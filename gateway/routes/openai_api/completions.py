"""POST /v1/completions: text as it is, without a chat template."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.config import Defaults
from gateway.engines.base import TextTools
from gateway.errors import InvalidRequest, ModelNotReady
from gateway.generation import Generation, Text, TokenIds
from gateway.lanes.router import Router
from gateway.routes.openai_api.completion_wire import Completion, CompletionRequest
from gateway.routes.openai_api.parse import check_stream_options, min_tokens_of, sampling_of, stop_of, wants_usage
from gateway.routes.openai_api.parse_grammar import grammar_of
from gateway.routes.openai_api.render_completion import CompletionRendering, CompletionShape
from gateway.routes.respond import answer_all, generation_opt
from gateway.server.body import read_json
from gateway.server.openapi_operation import Stream
from gateway.server.request import HttpRequest, request_number, router_of

MAX_TOKENS = 16  # OpenAI's default here, unlike that of a chat
MAX_PROMPTS = 1_000  # in one request

T = TypeVar("T")

_decoder = msgspec.json.Decoder(CompletionRequest)
_OPERATION = generation_opt("Go on with a text", CompletionRequest, Completion, Stream(Completion, end="[DONE]"))


@post(["/v1/completions", "/completions"], status_code=200, opt=_OPERATION)
async def completions(request: HttpRequest) -> ASGIApp:
    asked = await read_json(request, _decoder)
    router = router_of(request)
    defaults = router.defaults_for(asked.model)
    id = f"cmpl-{request_number(request.scope)}"
    generations = completion_generations(asked, defaults, id=id)
    prompts = prompts_of(asked)
    if len(prompts) > 1:
        await _check_all(router, asked.model, prompts)
    shape = CompletionShape(
        id=id,
        n=asked.n or 1,
        best_of=generations[0].n,
        echoes=await _echoes(router, asked, prompts),
        with_logprobs=asked.logprobs is not None,
        with_usage=wants_usage(asked),
    )
    return await answer_all(request, generations, CompletionRendering(shape), stream=bool(asked.stream))


def completion_generations(request: CompletionRequest, defaults: Defaults, *, id: str) -> list[Generation]:
    """One for each prompt. Raises InvalidRequest, its `param` the field at fault."""
    check_stream_options(request)
    _check_echo(request)
    best_of, max_tokens = _best_of(request), _max_tokens(request)
    is_ranked = best_of > (request.n or 1)
    return [
        Generation(
            id=id,
            model=request.model or "",
            prompt=prompt,
            sampling=sampling_of(request, defaults),
            max_tokens=max_tokens,
            min_tokens=min_tokens_of(request, max_tokens),
            ignore_eos=bool(request.ignore_eos),
            stop=stop_of(request),
            n=best_of,
            logprobs=0 if is_ranked and request.logprobs is None else request.logprobs,
            prompt_logprobs=bool(request.echo) and request.logprobs is not None,
            grammar=grammar_of(request),
            background=request.service_tier == "flex",
        )
        for prompt in prompts_of(request)
    ]


def prompts_of(request: CompletionRequest) -> list[Text | TokenIds]:
    """The prompts that the request holds, in order. Raises InvalidRequest for a list of mixed kinds."""
    field, suffix = request.prompt, request.suffix
    if isinstance(field, list) and len(field) > MAX_PROMPTS and not isinstance(field[0], int):
        raise InvalidRequest(f"'prompt' holds more than {MAX_PROMPTS} prompts.", param="prompt")
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
    return MAX_TOKENS if request.max_tokens is None else request.max_tokens


def _best_of(request: CompletionRequest) -> int:
    n = request.n or 1
    best_of = request.best_of or n
    if best_of < n:
        raise InvalidRequest(f"'best_of' must be at least 'n', which is {n}.", param="best_of")
    if best_of > n and request.stream:
        raise InvalidRequest("'best_of' above 'n' cannot be streamed: the best is known at the end.", param="best_of")
    return best_of


def _check_echo(request: CompletionRequest) -> None:
    if request.echo and request.suffix:
        raise InvalidRequest("'echo' and 'suffix' cannot be combined.", param="suffix")


async def _check_all(router: Router, model: str | None, prompts: Sequence[Text | TokenIds]) -> None:
    """Say what is wrong with the last prompt before the first is answered, where the tokenizer is on this machine."""
    try:
        tools = router.tools(model)
    except InvalidRequest:
        return
    with suppress(ModelNotReady):  # its fallback may answer
        await asyncio.to_thread(_encode_all, tools, prompts)


def _encode_all(tools: TextTools, prompts: Sequence[Text | TokenIds]) -> None:
    for prompt in prompts:
        tools.encode(prompt)


async def _echoes(router: Router, request: CompletionRequest, prompts: Sequence[Text | TokenIds]) -> tuple[str, ...]:
    """The prompts' texts, if they are echoed. Raises InvalidRequest for token ids whose tokenizer is elsewhere."""
    if not request.echo:
        return ("",) * len(prompts)
    return tuple([await _text(router, request.model, prompt) for prompt in prompts])


async def _text(router: Router, model: str | None, prompt: Text | TokenIds) -> str:
    if isinstance(prompt, Text):
        return prompt.text
    return await asyncio.to_thread(router.tools(model).decode, prompt.ids)
