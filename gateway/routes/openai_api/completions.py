"""POST /v1/completions: a text is continued without a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.errors import ModelNotReady
from gateway.generation import Text, TokenIds
from gateway.lanes.router import Router
from gateway.routes.openai_api.parse import wants_usage
from gateway.routes.openai_api.parse_completions import completion_generations, prompts_of
from gateway.routes.openai_api.render_completions import CompletionRendering, CompletionShape
from gateway.routes.openai_api.wire_completions import Completion, CompletionRequest
from gateway.routes.respond import answer_all, generation_opt
from gateway.server.body import by_size, read_json
from gateway.server.identity import client_of
from gateway.server.openapi_operation import Stream
from gateway.server.request import HttpRequest, request_number, router_of

_decoder = msgspec.json.Decoder(CompletionRequest)
_OPERATION = generation_opt("Continue a text", CompletionRequest, Completion, Stream(Completion, end="[DONE]"))


@post(["/v1/completions", "/completions"], status_code=200, opt=_OPERATION)
async def completions(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _decoder)
    router = router_of(request)
    defaults = router.defaults_for(body.model)
    id = f"cmpl-{request_number(request.scope)}"
    generations = await by_size(request, completion_generations, body, defaults, id=id)
    prompts = prompts_of(body)
    if len(prompts) > 1:
        await _check_prompts(router, body.model, prompts, client_of(request.scope))
    shape = CompletionShape(
        id=id,
        n=body.n or 1,
        best_of=generations[0].n,
        echoes=await _echoes(router, body, prompts, client_of(request.scope)),
        with_logprobs=body.logprobs is not None,
        with_usage=wants_usage(body),
    )
    return await answer_all(request, generations, CompletionRendering(shape), stream=bool(body.stream))


async def _check_prompts(router: Router, model: str | None, prompts: Sequence[Text | TokenIds], client: str) -> None:
    """Raise the error of any prompt before the first one is answered, if the tokenizer is on this machine."""
    if not router.has_tools(model):
        return
    with suppress(ModelNotReady):  # its fallback may answer
        async with router.tools(model, may_load=False) as tools:
            for prompt in prompts:
                await tools.encode(prompt, client)


async def _echoes(
    router: Router, body: CompletionRequest, prompts: Sequence[Text | TokenIds], client: str
) -> tuple[str, ...]:
    """The text to echo for each prompt. Raises InvalidRequest for token ids without a tokenizer on this machine."""
    if not body.echo:
        return ("",) * len(prompts)
    return tuple([await _text(router, body.model, prompt, client) for prompt in prompts])


async def _text(router: Router, model: str | None, prompt: Text | TokenIds, client: str) -> str:
    if isinstance(prompt, Text):
        return prompt.text
    async with router.tools(model) as tools:
        return await tools.decode(prompt.ids, client)
