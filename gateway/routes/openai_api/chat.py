"""POST /v1/chat/completions."""

from __future__ import annotations

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.routes.openai_api.parse import wants_usage
from gateway.routes.openai_api.parse_chat import chat_generation
from gateway.routes.openai_api.render_chat import ChatRendering
from gateway.routes.openai_api.wire import ChatCompletion, ChatCompletionChunk, ChatRequest
from gateway.routes.respond import answer, generation_opt
from gateway.server.body import by_size, read_json
from gateway.server.openapi_operation import Stream
from gateway.server.request import HttpRequest, request_number, router_of

_decoder = msgspec.json.Decoder(ChatRequest)
_OPERATION = generation_opt("Answer a chat", ChatRequest, ChatCompletion, Stream(ChatCompletionChunk, end="[DONE]"))


@post(["/v1/chat/completions", "/chat/completions"], status_code=200, opt=_OPERATION)
async def chat_completions(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _decoder)
    defaults = router_of(request).defaults_for(body.model)
    id = f"chatcmpl-{request_number(request.scope)}"
    generation = await by_size(request, chat_generation, body, defaults, id=id)
    rendering = ChatRendering(generation, with_usage=wants_usage(body), with_functions=bool(body.functions))
    return await answer(request, generation, rendering, stream=bool(body.stream))
