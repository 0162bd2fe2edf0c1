"""POST /v1/embeddings."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.embedding import EmbeddingAnswer, EmbeddingRequest
from gateway.routes.embeddings_api.embed import embed, embedding_opt, truncates, vectors_response
from gateway.routes.embeddings_api.parse import inputs_of, purpose_of
from gateway.routes.embeddings_api.wire import Embedding, EmbeddingList, EmbeddingsRequest, EmbeddingUsage
from gateway.server.body import by_size, read_json
from gateway.server.request import HttpRequest, request_number, router_of

_decoder = msgspec.json.Decoder(EmbeddingsRequest)
_json = msgspec.json.Encoder()
_OPERATION = embedding_opt("Make embeddings of texts", EmbeddingsRequest, EmbeddingList)


@post(["/v1/embeddings", "/embeddings"], status_code=200, opt=_OPERATION)
async def embeddings(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _decoder)
    model = router_of(request).name_for(body.model, "embeddings")
    wanted = EmbeddingRequest(
        id=f"embd-{request_number(request.scope)}",
        model=model,
        inputs=await by_size(request, inputs_of, body.input),
        purpose=purpose_of(body.input_type),
        truncate=truncates(request, model),
        dimensions=body.dimensions or 0,
    )
    [answer] = await embed(request, wanted)
    return vectors_response(request, answer, _pieces(answer, as_text=body.encoding_format == "base64"))


def _pieces(answer: EmbeddingAnswer, *, as_text: bool) -> Iterator[bytes]:
    """An `EmbeddingList` as JSON: the text before the vectors, each of them, and the text after them."""
    usage = EmbeddingUsage(prompt_tokens=answer.prompt_tokens, total_tokens=answer.prompt_tokens)
    frame = _json.encode(EmbeddingList(data=[], model=answer.model, usage=usage))
    before, _, after = frame.partition(b"[]")
    yield before + b"["
    for index in range(len(answer.embedded.tokens)):
        row = answer.embedded.row(index)
        vector = Embedding(index=index, embedding=_base64(row) if as_text else list(row))
        yield (b"," if index else b"") + _json.encode(vector)
    yield b"]" + after


def _base64(row: memoryview[float]) -> str:
    return base64.b64encode(row).decode()
