"""POST /tokenize, /detokenize and /apply-template, with the field names of llama.cpp and of vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
from litestar import post
from litestar.types import ASGIApp
from msgspec import UNSET, Meta, Struct, UnsetType

from gateway.engines.base import TextTools
from gateway.errors import InvalidRequest, ModelNotFound
from gateway.generation import Chat, Tool, ToolChoice
from gateway.routes.openai_api.parse_chat import messages_of
from gateway.routes.openai_api.parse_tools import tools_of
from gateway.routes.openai_api.wire import ChatMessage, ToolDefinition
from gateway.routes.respond import json_response
from gateway.routes.wire import MAX_MESSAGES, MAX_TOOLS, Count, Json
from gateway.server.body import by_size, check_depth, read_json
from gateway.server.identity import client_of
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest, router_of


class TokenizeRequest(Struct, kw_only=True):
    """A text as `content` (llama.cpp) or `prompt` (vLLM), or a chat as `messages`."""

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
    tokens: list[Count]
    model: str | None = None


class ApplyTemplateRequest(Struct, kw_only=True):
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    tools: Annotated[list[ToolDefinition], Meta(max_length=MAX_TOOLS)] | None = None
    chat_template_kwargs: Json | None = None


class TokenPiece(Struct, kw_only=True):
    """llama.cpp's form of a token: its text, or its bytes if they are not valid UTF-8."""

    id: int
    piece: str | list[int]


class Tokenized(Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: Sequence[int | TokenPiece]
    token_strs: list[str] | UnsetType = UNSET


class Detokenized(Struct, kw_only=True):
    """The text under llama.cpp's field name and under vLLM's."""

    content: str
    prompt: str


class AppliedTemplate(Struct, kw_only=True):
    prompt: str


_tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)
_template_decoder = msgspec.json.Decoder(ApplyTemplateRequest)
_TOKENIZE = openapi_opt("Tokenize a text or a chat", body=TokenizeRequest, reply=Tokenized, raises=(ModelNotFound,))
_DETOKENIZE = openapi_opt(
    "Decode token ids to text", body=DetokenizeRequest, reply=Detokenized, raises=(ModelNotFound,)
)
_APPLY_TEMPLATE = openapi_opt(
    "Render a chat with the model's template", body=ApplyTemplateRequest, reply=AppliedTemplate, raises=(ModelNotFound,)
)


@post("/tokenize", status_code=200, opt=_TOKENIZE)
async def tokenize(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _tokenize_decoder)
    router = router_of(request)
    async with router.tools(body.model) as tools:
        ids = await _ids(request, body, tools)
        reply = Tokenized(
            count=len(ids),
            max_model_len=router.model(body.model or "").status.engine.context_length,
            tokens=await asyncio.to_thread(_with_pieces, ids, tools) if body.with_pieces else ids,
        )
        if body.return_token_strs:
            reply.token_strs = await asyncio.to_thread(_strings, ids, tools)
    return json_response(reply)


@post("/detokenize", status_code=200, opt=_DETOKENIZE)
async def detokenize(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _detokenize_decoder)
    async with router_of(request).tools(body.model) as tools:
        text = await tools.decode(body.tokens, client_of(request.scope))
    return json_response(Detokenized(content=text, prompt=text))


@post("/apply-template", status_code=200, opt=_APPLY_TEMPLATE)
async def apply_template(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _template_decoder)
    chat = await by_size(request, _chat, body.messages, body.tools, body.chat_template_kwargs)
    async with router_of(request).tools(body.model) as tools:
        prompt = await tools.render(chat, client_of(request.scope))
    return json_response(AppliedTemplate(prompt=prompt))


async def _ids(request: HttpRequest, body: TokenizeRequest, tools: TextTools) -> list[int]:
    """Raises InvalidRequest unless the request has exactly one of `content`, `prompt` and `messages`."""
    client = client_of(request.scope)
    match body:
        case TokenizeRequest(content=str(text), prompt=None, messages=None):
            begin = bool(body.add_special)
        case TokenizeRequest(content=None, prompt=str(text), messages=None):
            begin = body.add_special_tokens is not False
        case TokenizeRequest(content=None, prompt=None, messages=list(messages)):
            chat = await by_size(request, _chat, messages, body.tools, body.chat_template_kwargs)
            return await tools.encode(chat, client)
        case _:
            raise InvalidRequest("Send one of 'content', 'prompt' and 'messages'.", param="content")
    return await tools.tokenize(text, client, begin=begin, specials=body.parse_special is not False)


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


def _strings(ids: list[int], tools: TextTools) -> list[str]:
    return [piece.decode(errors="replace") for piece in tools.pieces(ids)]


def _piece(token: bytes) -> str | list[int]:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return list(token)
