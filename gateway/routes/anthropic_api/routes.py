"""POST /v1/messages and /v1/messages/count_tokens, for clients that speak Anthropic's API."""

from __future__ import annotations

import asyncio

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.config import Defaults
from gateway.errors import ModelNotFound
from gateway.generation import Generation, Grammar
from gateway.routes.anthropic_api.parse import chat_of
from gateway.routes.anthropic_api.render import AnthropicRendering
from gateway.routes.anthropic_api.wire import (
    AnthropicMessage,
    CountTokensRequest,
    MessagesRequest,
    StreamEvent,
    TokenCount,
)
from gateway.routes.openai_api.parse import sampling_of
from gateway.routes.openai_api.parse_grammar import schema_grammar
from gateway.routes.openai_api.wire import GenerationFields
from gateway.routes.respond import answer, generation_opt, json_response
from gateway.server.body import read_json
from gateway.server.openapi_operation import Stream, openapi_opt
from gateway.server.request import HttpRequest, request_number, router_of

_messages_decoder = msgspec.json.Decoder(MessagesRequest)
_count_decoder = msgspec.json.Decoder(CountTokensRequest)
_MESSAGES = generation_opt("Answer a chat (Anthropic)", MessagesRequest, AnthropicMessage, Stream(StreamEvent))
_COUNT = openapi_opt("Count a prompt's tokens", body=CountTokensRequest, reply=TokenCount, raises=(ModelNotFound,))


@post("/v1/messages", status_code=200, opt=_MESSAGES)
async def messages(request: HttpRequest) -> ASGIApp:
    asked = await read_json(request, _messages_decoder)
    defaults = router_of(request).defaults_for(asked.model)
    generation = messages_generation(asked, defaults, id=f"msg_{request_number(request.scope)}")
    return await answer(request, generation, AnthropicRendering(generation), stream=bool(asked.stream))


@post("/v1/messages/count_tokens", status_code=200, opt=_COUNT)
async def count_tokens(request: HttpRequest) -> ASGIApp:
    asked = await read_json(request, _count_decoder)
    tools = router_of(request).tools(asked.model)
    ids = await asyncio.to_thread(tools.encode, chat_of(asked))
    return json_response(TokenCount(input_tokens=len(ids)))


def messages_generation(request: MessagesRequest, defaults: Defaults, *, id: str) -> Generation:
    """Raises InvalidRequest, its `param` the field at fault."""
    sampling = GenerationFields(temperature=request.temperature, top_p=request.top_p, top_k=request.top_k)
    return Generation(
        id=id,
        model=request.model,
        prompt=chat_of(request),
        sampling=sampling_of(sampling, defaults),
        max_tokens=request.max_tokens,
        stop=tuple(request.stop_sequences or ()),
        grammar=_grammar(request),
    )


def _grammar(request: MessagesRequest) -> Grammar | None:
    if request.output_config is None or request.output_config.format is None:
        return None
    return schema_grammar(request.output_config.format.schema, "output_config.format.schema")
