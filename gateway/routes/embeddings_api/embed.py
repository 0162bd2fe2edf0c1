"""What each API does with a request for embeddings: it gets the vectors and sends them.

A reply can have millions of numbers, which the encoder writes in seconds. So a large reply is written and sent in
pieces: the event loop continues between them, and a client that does not read holds back only its own vectors.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import Any, cast

from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp
from msgspec.structs import replace

from gateway.embedding import EmbeddingAnswer, EmbeddingRequest
from gateway.errors import DeadlineExceeded, GatewayError, InvalidRequest, LimitReached, ModelNotFound, QueueFull
from gateway.lanes.embed import generation_of
from gateway.routes.respond import LIMITS, device_header, fallback_header, sent_by, truncation_of
from gateway.server.error_body import ROUTE
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import TRUNCATED, HttpRequest, router_of, take_limits, while_connected
from gateway.server.sse import EventStream

JSON = "application/json"
_NUMBERS_AT_ONCE = 20_000  # that are written in one step of the event loop: about 2 ms


def embedding_opt(summary: str, body: Any, reply: Any) -> dict[str, Any]:
    """The `opt` of a handler that sends a request to an encoder; see `openapi_opt`."""
    raises = (ModelNotFound, QueueFull, LimitReached, DeadlineExceeded)
    return openapi_opt(summary, body=body, reply=reply, raises=raises, parameters=LIMITS)


async def embed(request: HttpRequest, *wanted: EmbeddingRequest) -> list[EmbeddingAnswer]:
    """The answers to `wanted`, one after another. Adds who sent it and the limits and the priority from the headers.

    A client that disconnects cancels them: ClientDisconnected. Raises each refusal, and InvalidRequest for more
    dimensions than the model has.
    """
    complete = [replace(each, **sent_by(request, each.background)) for each in wanted]
    await take_limits(request, [generation_of(each) for each in complete])
    return await while_connected(request, _answers(request, complete))


async def _answers(request: HttpRequest, wanted: Iterable[EmbeddingRequest]) -> list[EmbeddingAnswer]:
    answers = []
    for each in wanted:
        answers.append(await router_of(request).embed(each))
        most = answers[-1].embedded.dimensions
        if each.dimensions > most:
            message = f"'dimensions' is {each.dimensions}, and the vectors of {answers[-1].model} have {most}."
            raise InvalidRequest(message, param="dimensions")
    return answers


def truncates(request: HttpRequest, model: str) -> bool:
    """True if a text that is too long is cut: by the header, else by the configuration. Raises ModelNotFound."""
    return truncation_of(request, router_of(request).defaults_for(model).truncation == "auto")


def headers_of(request: HttpRequest, answer: EmbeddingAnswer) -> dict[str, str]:
    """Where the model runs, which server answers, the number of texts that were cut, and why a fallback answers."""
    cut = {TRUNCATED: f"texts={answer.cut_texts}"} if answer.cut_texts else {}
    headers = device_header(router_of(request), answer.model) | cut
    return headers | {ROUTE: answer.route} | fallback_header(answer.model, answer.fallback_cause)


def vectors_response(request: HttpRequest, answer: EmbeddingAnswer, pieces: Iterator[bytes]) -> ASGIApp:
    """The reply whose text is `pieces`, each of them one vector or less."""
    headers = headers_of(request, answer)
    numbers = max(1, answer.embedded.dimensions)
    if len(answer.embedded.tokens) * numbers <= _NUMBERS_AT_ONCE:
        return ASGIResponse(body=b"".join(pieces), media_type=JSON, headers=headers)
    stream = EventStream(
        _Source(joined(pieces, numbers)), lambda part: [part], failed=_failed, ping_s=60.0, media_type=JSON
    )
    stream.headers.update(headers)
    return cast(ASGIApp, stream)  # starlette and Litestar have different types for the same protocol


def joined(pieces: Iterator[bytes], numbers: int) -> Iterator[bytes]:
    """`pieces`, as many at once as the event loop writes in one step. `numbers`: in each of them."""
    while part := b"".join(islice(pieces, max(1, _NUMBERS_AT_ONCE // numbers))):
        yield part


class _Source(AsyncIterator[bytes]):
    """See `sse.Source`."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts

    is_over = False

    def poll(self) -> bytes | None:
        return next(self._parts, None)

    async def __anext__(self) -> bytes:
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self._parts = iter(())


def _failed(error: GatewayError) -> bytes:
    """The rest of a reply that fails while it is written: nothing, and the client gets no valid JSON."""
    return b""
