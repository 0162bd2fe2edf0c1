"""POST /api/embed and /api/embeddings: Ollama's API for vectors. A request without a text gets no vector."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.embedding import EmbeddingAnswer, EmbeddingRequest
from gateway.routes.embeddings_api.embed import embed, embedding_opt, vectors_response
from gateway.routes.embeddings_api.parse import Input, inputs_of
from gateway.routes.ollama_api.keep_alive import keep_alive_s
from gateway.routes.ollama_api.wire import EmbeddingFields, EmbedReply, EmbedRequest, PromptReply, PromptRequest
from gateway.routes.respond import json_response, truncation_of
from gateway.server.body import by_size, read_json
from gateway.server.request import HttpRequest, request_number, router_of

_embed_decoder = msgspec.json.Decoder(EmbedRequest)
_prompt_decoder = msgspec.json.Decoder(PromptRequest)
_json = msgspec.json.Encoder()
_EMBED = embedding_opt("Make embeddings of texts (Ollama)", EmbedRequest, EmbedReply)
_EMBED_PROMPT = embedding_opt("Make an embedding of one text (Ollama)", PromptRequest, PromptReply)


@post("/api/embed", status_code=200, opt=_EMBED)
async def embed_texts(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _embed_decoder)
    if not body.input:
        return json_response(_reply(router_of(request).lookup(body.model).model))
    inputs = await by_size(request, inputs_of, body.input)
    truncate, dimensions = body.truncate is not False, body.dimensions or 0
    wanted = _wanted(request, body, inputs, truncate=truncate, dimensions=dimensions)
    [answer] = await embed(request, wanted)
    return vectors_response(request, answer, _pieces(answer))


@post("/api/embeddings", status_code=200, opt=_EMBED_PROMPT)
async def embed_prompt(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _prompt_decoder)
    if not body.prompt:
        router_of(request).lookup(body.model)
        return json_response(PromptReply(embedding=[]))
    [answer] = await embed(request, _wanted(request, body, inputs_of(body.prompt), param="prompt"))
    return json_response(PromptReply(embedding=list(answer.embedded.row(0))))


def _wanted(
    request: HttpRequest, body: EmbeddingFields, inputs: tuple[Input, ...], *, truncate: bool = True, **fields: Any
) -> EmbeddingRequest:
    id = f"ollama-{request_number(request.scope)}"
    truncate, kept_s = truncation_of(request, truncate), keep_alive_s(body.keep_alive)
    return EmbeddingRequest(id=id, model=body.model, inputs=inputs, truncate=truncate, keep_alive_s=kept_s, **fields)


def _reply(model: str, seconds: float = 0.0, tokens: int = 0) -> EmbedReply:
    """A reply without its vectors."""
    total = round(seconds * 1e9)
    return EmbedReply(model=model, embeddings=[], total_duration=total, load_duration=0, prompt_eval_count=tokens)


def _pieces(answer: EmbeddingAnswer) -> Iterator[bytes]:
    """An `EmbedReply` as JSON: the text before the vectors, each of them, and the text after them."""
    before, _, after = _json.encode(_reply(answer.model, answer.total_s, answer.prompt_tokens)).partition(b"[]")
    yield before + b"["
    for index in range(len(answer.embedded.tokens)):
        yield (b"," if index else b"") + _json.encode(list(answer.embedded.row(index)))
    yield b"]" + after
