"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API."""

from __future__ import annotations

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.errors import ModelNotFound
from gateway.routes.anthropic_api.parse import chat_of, messages_generation
from gateway.routes.anthropic_api.render import AnthropicRendering
from gateway.routes.anthropic_api.wire import (
    AnthropicMessage,
    CountTokensRequest,
    MessagesRequest,
    StreamEvent,
    TokenCount,
)
from gateway.routes.respond import answer, generation_opt, json_response
from gateway.server.body import by_size, read_json
from gateway.server.identity import client_of
from gateway.server.openapi_operation import Stream, openapi_opt
from gateway.server.request import HttpRequest, request_number, router_of

_messages_decoder = msgspec.json.Decoder(MessagesRequest)
_count_decoder = msgspec.json.Decoder(CountTokensRequest)
_MESSAGES = generation_opt("Answer a chat (Anthropic)", MessagesRequest, AnthropicMessage, Stream(StreamEvent))
_COUNT = openapi_opt(
    "Count the tokens of a prompt (Anthropic)", body=CountTokensRequest, reply=TokenCount, raises=(ModelNotFound,)
)


@post("/v1/messages", status_code=200, opt=_MESSAGES)
async def messages(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _messages_decoder)
    defaults = router_of(request).defaults_for(body.model)
    id = f"msg_{request_number(request.scope)}"
    generation = await by_size(request, messages_generation, body, defaults, id=id)
    return await answer(request, generation, AnthropicRendering(generation), stream=bool(body.stream))


@post("/v1/messages/count_tokens", status_code=200, opt=_COUNT)
async def count_tokens(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _count_decoder)
    async with router_of(request).tools(body.model) as tools:
        chat = await by_size(request, chat_of, body)
        ids = await tools.encode(chat, client_of(request.scope))
    return json_response(TokenCount(input_tokens=len(ids)))
