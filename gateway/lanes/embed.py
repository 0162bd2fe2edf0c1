"""Requests for embeddings and scores in the lanes: as generations, and which models can answer them."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.embedding import Embedded, EmbeddingAnswer, EmbeddingRequest, Inputs
from gateway.engines.base import Capability
from gateway.errors import GatewayError, InvalidRequest
from gateway.generation import Finished, Generation
from gateway.lanes.answer import RoutedAnswer
from gateway.lanes.lane import Lane

_RESULTS: dict[Capability, str] = {"chat": "text", "embeddings": "embeddings", "rerank": "scores for documents"}


def needs(generation: Generation) -> Capability:
    """What a model must be able to do to answer the request."""
    if not isinstance(generation.prompt, Inputs):
        return "chat"
    return "rerank" if generation.prompt.pairs else "embeddings"


def wrong_kind(name: str, need: Capability, models: Sequence[str]) -> InvalidRequest:
    """The error for a request to a model of another kind. `models`: those that can answer it."""
    what = _RESULTS[need]
    instead = f"use {' or '.join(models)}" if models else "no configured model does; add one to config.toml"
    return InvalidRequest(f"The model '{name}' does not make {what}; {instead}.", param="model")


def makes_same_vectors(lane: Lane, other: Lane) -> bool:
    """True if vectors of the two can be compared: they are one model, in two precisions or on two devices.

    Vectors of other models would look right and make every search in a collection of them wrong, so that fallback
    does not answer.
    """
    sources = {getattr(each.config, "source", "") for each in (lane, other)}
    return lane is other or (len(sources) == 1 and sources != {""})


def generation_of(request: EmbeddingRequest) -> Generation:
    """The request as the lanes take it."""
    inputs = Inputs(
        texts=request.inputs,
        pairs=request.pairs,
        purpose=request.purpose,
        truncate=request.truncate,
        dimensions=request.dimensions,
        param=request.param,
    )
    return Generation(
        id=request.id,
        model=request.model,
        prompt=inputs,
        max_tokens=1,
        timeout_s=request.timeout_s,
        ttft_timeout_s=request.ttft_timeout_s,
        background=request.background,
        owner=request.owner,
        endpoint=request.endpoint,
        client=request.client,
        hops=request.hops,
        traceparent=request.traceparent,
        keep_alive_s=request.keep_alive_s,
    )


async def embedding_answer(answer: RoutedAnswer) -> EmbeddingAnswer:
    """Read the answer to its end, and close it. Raises what it raises."""
    embedded: Embedded | None = None
    finished: Finished | None = None
    try:
        async for event in answer:
            if isinstance(event, Embedded):
                embedded = event
            elif isinstance(event, Finished):
                finished = event
    finally:
        await answer.aclose()
    if embedded is None or finished is None:
        raise GatewayError(f"{answer.model} gave no vectors.")
    return EmbeddingAnswer(
        model=answer.model,
        embedded=embedded,
        prompt_tokens=finished.usage.prompt_tokens,
        device_s=finished.timings.device_s,
        total_s=finished.timings.total_s,
        load_s=finished.timings.load_s,
        fallback_cause=answer.fallback_cause,
        route=answer.route.text(answer.fallback_cause),
        cut_texts=answer.cut_texts,
    )
