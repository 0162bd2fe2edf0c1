"""POST /v1/rerank, in the form of Cohere and Jina: documents in the order of their relevance to a query.

A cross-encoder reads the query together with each document: its score is between 0 and 1. An embedding model reads each
text alone: its score is the cosine of the two vectors, between -1 and 1. That is faster and less exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

import msgspec
from litestar import post
from litestar.types import ASGIApp

from gateway.embedding import Embedded, EmbeddingAnswer, EmbeddingRequest
from gateway.lanes.memory.residency import Residency
from gateway.routes.embeddings_api.embed import embed, embedding_opt, headers_of, truncates
from gateway.routes.embeddings_api.parse import texts_of
from gateway.routes.embeddings_api.wire import Document, EmbeddingUsage, Ranked, Ranking, RerankRequest
from gateway.routes.respond import json_response
from gateway.server.body import by_size, in_thread, read_json
from gateway.server.request import HttpRequest, request_number, router_of, while_connected

_decoder = msgspec.json.Decoder(RerankRequest)
_OPERATION = embedding_opt("Rank documents by their relevance to a query", RerankRequest, Ranking)


@post(["/v1/rerank", "/rerank", "/v2/rerank"], status_code=200, opt=_OPERATION)
async def rerank(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _decoder)
    texts = await by_size(request, texts_of, body.documents)
    name = router_of(request).name_for(body.model, "rerank", "embeddings")
    await _know_kind(request, name)
    answers = await embed(request, *_wanted(request, body, name, texts))
    scores = await _scores(request, answers)
    tokens = sum(answer.prompt_tokens for answer in answers)
    ranked = _ranked(scores, texts if body.return_documents else (), body.top_n or body.top_k or len(texts))
    ranking = Ranking(
        id=f"rerank-{request_number(request.scope)}",
        model=answers[-1].model,
        results=ranked,
        data=ranked,
        usage=EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens),
    )
    return json_response(ranking, headers=headers_of(request, answers[-1]))


async def _know_kind(request: HttpRequest, name: str) -> None:
    """Load a model whose bundle is built for its first request: what it can do is known then. Raises its refusal."""
    model = router_of(request).model(name)
    if not model.status.engine.capabilities:
        residency: Residency = request.app.state.residency
        await while_connected(request, residency.load(model.name))


def _wanted(request: HttpRequest, body: RerankRequest, name: str, texts: tuple[str, ...]) -> list[EmbeddingRequest]:
    """One request for the scores of a cross-encoder; two for the vectors of an embedding model: query, documents."""
    common = EmbeddingRequest(
        id=f"rerank-{request_number(request.scope)}", model=name, truncate=truncates(request, name), param="documents"
    )
    if "embeddings" not in router_of(request).model(name).status.engine.capabilities:
        return [msgspec.structs.replace(common, pairs=tuple((body.query, text) for text in texts))]
    return [
        msgspec.structs.replace(common, inputs=(body.query,), purpose="query", param="query"),
        msgspec.structs.replace(common, inputs=texts, purpose="document"),
    ]


async def _scores(request: HttpRequest, answers: Sequence[EmbeddingAnswer]) -> Sequence[float]:
    if len(answers) == 1:
        return answers[0].embedded.scores
    query, documents = (answer.embedded for answer in answers)
    return await in_thread(request, _cosines, list(query.row(0)), documents)


def _cosines(query: list[float], documents: Embedded) -> list[float]:
    """The cosine of the query's vector and each document's."""
    rows = (list(documents.row(index)) for index in range(len(documents.tokens)))
    length = math.hypot(*query)
    return [sum(map(mul, query, row)) / max(length * math.hypot(*row), 1e-12) for row in rows]


def _ranked(scores: Sequence[float], texts: Sequence[str], top_n: int) -> list[Ranked]:
    """The `top_n` best; documents of one score in the order of the request. `texts`: to send back, or none."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    results = [Ranked(index=index, relevance_score=scores[index]) for index in order[:top_n]]
    for result in results if texts else ():
        result.document = Document(text=texts[result.index])
    return results
