"""POST /tokenize, /detokenize and /apply-template, in llama.cpp's words and in vLLM's."""

from __future__ import annotations

import asyncio

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.engines.base import TextTools
from gateway.errors import InvalidRequest, ModelNotFound
from gateway.generation import Chat, Tool, ToolChoice
from gateway.routes.openai_api.completion_wire import (
    AppliedTemplate,
    ApplyTemplateRequest,
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
    TokenPiece,
)
from gateway.routes.openai_api.parse_messages import messages_of
from gateway.routes.openai_api.parse_tools import tools_of
from gateway.routes.openai_api.wire import ChatMessage, Json, ToolDefinition
from gateway.routes.respond import json_response
from gateway.server.body import check_depth, read_json
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest, router_of

_tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)
_template_decoder = msgspec.json.Decoder(ApplyTemplateRequest)
_TOKENIZE = openapi_opt("A text's tokens", body=TokenizeRequest, reply=Tokenized, raises=(ModelNotFound,))
_DETOKENIZE = openapi_opt("The text of tokens", body=DetokenizeRequest, reply=Detokenized, raises=(ModelNotFound,))
_APPLY_TEMPLATE = openapi_opt(
    "A chat through its model's template", body=ApplyTemplateRequest, reply=AppliedTemplate, raises=(ModelNotFound,)
)


@post("/tokenize", status_code=200, opt=_TOKENIZE)
async def tokenize(request: HttpRequest) -> ASGIApp:
    asked = await read_json(request, _tokenize_decoder)
    router = router_of(request)
    tools = router.tools(asked.model)
    ids = await asyncio.to_thread(_ids, asked, tools)
    reply = Tokenized(
        count=len(ids),
        max_model_len=router.model(asked.model or "").status.engine.context_length,
        tokens=_with_pieces(ids, tools) if asked.with_pieces else ids,
    )
    if asked.return_token_strs:
        reply.token_strs = [piece.decode(errors="replace") for piece in tools.pieces(ids)]
    return json_response(reply)


@post("/detokenize", status_code=200, opt=_DETOKENIZE)
async def detokenize(request: HttpRequest) -> ASGIApp:
    asked = await read_json(request, _detokenize_decoder)
    text = await asyncio.to_thread(router_of(request).tools(asked.model).decode, asked.tokens)
    return json_response(Detokenized(content=text, prompt=text))


@post("/apply-template", status_code=200, opt=_APPLY_TEMPLATE)
async def apply_template(request: HttpRequest) -> ASGIApp:
    asked = await read_json(request, _template_decoder)
    chat = _chat(asked.messages, asked.tools, asked.chat_template_kwargs)
    prompt = await asyncio.to_thread(router_of(request).tools(asked.model).render, chat)
    return json_response(AppliedTemplate(prompt=prompt))


def _ids(asked: TokenizeRequest, tools: TextTools) -> list[int]:
    """Raises InvalidRequest unless there is exactly one thing to tokenize."""
    match asked:
        case TokenizeRequest(content=str(text), prompt=None, messages=None):
            begin = bool(asked.add_special)
        case TokenizeRequest(content=None, prompt=str(text), messages=None):
            begin = asked.add_special_tokens is not False
        case TokenizeRequest(content=None, prompt=None, messages=list(messages)):
            return tools.encode(_chat(messages, asked.tools, asked.chat_template_kwargs))
        case _:
            raise InvalidRequest("Send one of 'content', 'prompt' and 'messages'.", param="content")
    return tools.tokenize(text, begin=begin, specials=asked.parse_special is not False)


def _chat(messages: list[ChatMessage], definitions: list[ToolDefinition] | None, template_kwargs: Json | None) -> Chat:
    check_depth(template_kwargs, "chat_template_kwargs")
    tools: tuple[Tool, ...] = tools_of(definitions)
    return Chat(
        messages=messages_of(messages),
        tools=tools,
        tool_choice=ToolChoice(mode="auto" if tools else "none"),
        template_kwargs=template_kwargs or {},
    )


def _with_pieces(ids: list[int], tools: TextTools) -> list[TokenPiece]:
    return [TokenPiece(id=index, piece=_piece(piece)) for index, piece in zip(ids, tools.pieces(ids), strict=True)]


def _piece(written: bytes) -> str | list[int]:
    try:
        return written.decode()
    except UnicodeDecodeError:
        return list(written)
