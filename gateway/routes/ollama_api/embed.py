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
    name = router_of(request).name_for(body.model, "embeddings")
    if not body.input:
        model = router_of(request).lookup(name).model
        return json_response(
            EmbedReply(model=model, embeddings=[], total_duration=0, load_duration=0, prompt_eval_count=0)
        )
    inputs = await by_size(request, inputs_of, body.input)
    truncate, dimensions = body.truncate is not False, body.dimensions or 0
    wanted = _wanted(request, body, name, inputs, truncate=truncate, dimensions=dimensions)
    [answer] = await embed(request, wanted)
    return vectors_response(request, answer, _pieces(answer))


@post("/api/embeddings", status_code=200, opt=_EMBED_PROMPT)
async def embed_prompt(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _prompt_decoder)
    name = router_of(request).name_for(body.model, "embeddings")
    if not body.prompt:
        router_of(request).lookup(name)
        return json_response(PromptReply(embedding=[]))
    [answer] = await embed(request, _wanted(request, body, name, inputs_of(body.prompt), param="prompt"))
    return json_response(PromptReply(embedding=list(answer.embedded.row(0))))


def _wanted(
    request: HttpRequest,
    body: EmbeddingFields,
    model: str,
    inputs: tuple[Input, ...],
    *,
    truncate: bool = True,
    **fields: Any,
) -> EmbeddingRequest:
    id = f"ollama-{request_number(request.scope)}"
    truncate, kept_s = truncation_of(request, truncate), keep_alive_s(body.keep_alive)
    return EmbeddingRequest(id=id, model=model, inputs=inputs, truncate=truncate, keep_alive_s=kept_s, **fields)


def _reply(answer: EmbeddingAnswer) -> EmbedReply:
    """A reply without its vectors."""
    return EmbedReply(
        model=answer.model,
        embeddings=[],
        total_duration=round(answer.total_s * 1e9),
        load_duration=round(answer.load_s * 1e9),
        prompt_eval_count=answer.prompt_tokens,
    )


def _pieces(answer: EmbeddingAnswer) -> Iterator[bytes]:
    """An `EmbedReply` as JSON: the text before the vectors, each of them, and the text after them."""
    before, _, after = _json.encode(_reply(answer)).partition(b"[]")
    yield before + b"["
    for index in range(len(answer.embedded.tokens)):
        yield (b"," if index else b"") + _json.encode(list(answer.embedded.row(index)))
    yield b"]" + after
