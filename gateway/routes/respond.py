"""What every API does with a Generation: it gets the answer and sends it, streamed or not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal, Protocol, cast
from urllib.parse import quote_plus

import msgspec
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Meta
from msgspec.structs import replace

from gateway.errors import (
    DeadlineExceeded,
    GatewayError,
    InvalidRequest,
    LimitReached,
    ModelNotFound,
    QueueFull,
    UpstreamFailed,
)
from gateway.generation import UNLIMITED, Event, Generation
from gateway.lanes.answer import RoutedAnswer
from gateway.lanes.router import Router
from gateway.routes.collect import Collected, collect
from gateway.routes.many_prompts import MultiPromptAnswer
from gateway.server.body import in_thread
from gateway.server.error_body import ROUTE
from gateway.server.identity import client_of
from gateway.server.openapi_operation import Parameter, Stream, openapi_opt
from gateway.server.request import (
    FALLBACK,
    TRUNCATED,
    HttpRequest,
    headers_of,
    owner_of,
    router_of,
    take_limits,
    while_connected,
)
from gateway.server.sse import EventStream

TIMEOUT, FIRST_TOKEN, PRIORITY = "x-request-timeout-ms", "x-max-ttft-ms", "x-gateway-priority"
TRUNCATION = "x-gateway-truncation"
PREDICTED_TTFT = "x-gateway-predicted-ttft-ms"  # headers of the response
DEVICE = "x-gateway-device"
LIMITS = (  # headers of the request, of each route that sends it to a model
    Parameter(TIMEOUT, "header", Annotated[float, Meta(gt=0)], "Time limit of the whole answer, in milliseconds."),
    Parameter(FIRST_TOKEN, "header", Annotated[float, Meta(gt=0)], "Time limit of the first token, in milliseconds."),
    Parameter(
        PRIORITY, "header", Literal["interactive", "background"], "Background requests wait for interactive ones."
    ),
    Parameter(
        TRUNCATION, "header", Literal["auto", "disabled"], "Leave out the oldest turns of a chat that is too long."
    ),
)

_MANY_LOGPROBS = 5_000  # values; a thread renders a whole reply with more of them
_HOP = re.compile(r"npu-gateway-[0-9a-f]{16}\b")  # in the header `Via`, from engines/upstream
_MOST_HOPS = 20
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

Answer = RoutedAnswer | MultiPromptAnswer

_json = msgspec.json.Encoder()


class Rendering(Protocol):
    """Renders one answer for one API. Made for one request; `pieces` may keep state.

    `model` is the name of the model that answers. It is final with the first event.
    """

    media_type: str

    def whole(self, model: str, collected: Collected) -> Any:
        """The reply that is not streamed, as a struct."""

    def pieces(self, model: str, event: Event) -> Iterator[bytes]:
        """The encoded frames of `event`. `Finished` gives the last frames of the stream."""

    def failed(self, error: GatewayError) -> bytes:
        """The last frame of a stream that fails."""


def generation_opt(summary: str, body: Any, reply: Any, stream: Stream) -> dict[str, Any]:
    """The `opt` of a handler that sends a request to a model; see `openapi_opt`."""
    raises = (ModelNotFound, QueueFull, LimitReached, UpstreamFailed, DeadlineExceeded)
    return openapi_opt(summary, body=body, reply=reply, stream=stream, raises=raises, parameters=LIMITS)


async def answer(request: HttpRequest, generation: Generation, rendering: Rendering, *, stream: bool) -> ASGIApp:
    """The response to one generation; see `answer_all`."""
    return await answer_all(request, [generation], rendering, stream=stream)


async def answer_all(
    request: HttpRequest, generations: Sequence[Generation], rendering: Rendering, *, stream: bool
) -> ASGIApp:
    """One response to one or several generations. Choices are numbered across the generations.

    Returns when a device has begun (streamed) or when the answer is complete, so every refusal is raised here and gets
    its own HTTP status. A client that disconnects before that cancels the request: ClientDisconnected. Adds the owner
    of the key, the client, and the limits and the priority from the headers, to the generations.
    """
    router = router_of(request)
    generations = [_with_headers(generation, request, is_whole=not stream) for generation in generations]
    request.scope["state"]["max_tokens"] = _default_limit(generations[0])
    await take_limits(request, generations)
    if not stream:
        return await while_connected(request, _whole(request, generations, rendering))
    opened = await while_connected(request, _open(router, generations))
    stream_response = EventStream(
        opened,
        lambda event: rendering.pieces(opened.model, event),
        failed=rendering.failed,
        ping_s=router.config.server.ping_s,
        media_type=rendering.media_type,
    )
    stream_response.headers.update(_of_lane(opened) | device_header(router, opened.model))
    return cast(ASGIApp, stream_response)  # starlette and Litestar have different types for the same protocol


def _with_headers(generation: Generation, request: HttpRequest, *, is_whole: bool) -> Generation:
    sent = sent_by(request, generation.background)
    truncation = truncation_of(request, generation.truncation)
    return replace(generation, truncation=truncation, is_whole=is_whole, **sent)


def sent_by(request: HttpRequest, background: bool) -> dict[str, Any]:
    """Fields of a Generation and of an EmbeddingRequest: who sent it, its limits and its priority, from the headers.

    Args:
        background: the request has a low priority without the header.
    """
    return {
        "owner": owner_of(request),
        "endpoint": request.scope["path"],
        "client": client_of(request.scope),
        "hops": tuple(_HOP.findall(headers_of(request.scope).get("via", ""))[-_MOST_HOPS:]),
        "traceparent": _traceparent(request),
        "timeout_s": _seconds(request, TIMEOUT),
        "ttft_timeout_s": _seconds(request, FIRST_TOKEN),
        "background": background or _is_background(request),
    }


def _traceparent(request: HttpRequest) -> str:
    """The header `traceparent`; "" if it is missing or wrong: by its specification, it fails no request."""
    value = headers_of(request.scope).get("traceparent", "")
    return value if _TRACEPARENT.fullmatch(value) else ""


def _default_limit(generation: Generation) -> str:
    """The header `x-gateway-max-tokens`; "" for a limit of the request."""
    limit = "context" if generation.max_tokens == UNLIMITED else generation.max_tokens
    return f"{limit} (default)" if generation.has_default_limit else ""


def _is_background(request: HttpRequest) -> bool:
    """Raises InvalidRequest for an unknown priority."""
    priority = headers_of(request.scope).get(PRIORITY, "interactive")
    if priority not in ("interactive", "background"):
        raise InvalidRequest(f"The header '{PRIORITY}' must be 'interactive' or 'background'.", param=PRIORITY)
    return priority == "background"


def truncation_of(request: HttpRequest, default: bool) -> bool:
    """`Generation.truncation`: from the header, else `default`. Raises InvalidRequest for an unknown value."""
    value = headers_of(request.scope).get(TRUNCATION)
    if value not in (None, "auto", "disabled"):
        raise InvalidRequest(f"The header '{TRUNCATION}' must be 'auto' or 'disabled'.", param=TRUNCATION)
    return default if value is None else value == "auto"


def _seconds(request: HttpRequest, header: str) -> float | None:
    """A header in milliseconds, as seconds. Raises InvalidRequest with the header's name as `param`."""
    text = headers_of(request.scope).get(header)
    if text is None:
        return None
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise InvalidRequest(f"The header '{header}' must be a positive number of milliseconds.", param=header)
    return milliseconds / 1000


async def _open(router: Router, generations: Sequence[Generation]) -> Answer:
    """The answer, when a device has begun with it. Raises every refusal. Close the answer."""
    if len(generations) == 1:
        return await router.open(generations[0])
    answer = MultiPromptAnswer(router, generations)
    try:
        await answer.open()
    except BaseException:
        await answer.aclose()
        raise
    return answer


async def _whole(request: HttpRequest, generations: Sequence[Generation], rendering: Rendering) -> ASGIApp:
    router = router_of(request)
    async with aclosing(await _open(router, generations)) as opened:
        collected = await collect(opened, sum(generation.n for generation in generations))
    headers = _of_lane(opened) | device_header(router, opened.model)

    def render() -> ASGIApp:
        return json_response(rendering.whole(opened.model, collected), headers=headers)

    return await in_thread(request, render) if collected.logprobs > _MANY_LOGPROBS else render()


def _of_lane(opened: Answer) -> dict[str, str]:
    """The prediction of the lane that answers, the messages that it left out, its server, and why it is a fallback.

    Of a stream, it is the lane whose device has begun; its fallback may still answer."""
    predicted_s, dropped = opened.predicted_ttft_s, opened.dropped_messages
    headers = {} if predicted_s is None else {PREDICTED_TTFT: f"{1000 * predicted_s:.0f}"}
    return (
        headers
        | fallback_header(opened.model, opened.fallback_cause)
        | {ROUTE: opened.route.text(opened.fallback_cause)}
        | ({TRUNCATED: f"messages={dropped}"} if dropped else {})
    )


def fallback_header(model: str, cause: str) -> dict[str, str]:
    """`lighter;cause=rate_limit_exceeded`: the fallback that answers, and why the requested model does not."""
    return {FALLBACK: f"{quote_plus(model, safe='/:')};cause={cause}"} if cause else {}


def device_header(router: Router, model: str) -> dict[str, str]:
    """Where the model runs and how fast: `npu;cpu-nodes=0;tokens-per-s=19.7;published-tokens-per-s=21.2`.

    Of a stream, it is the model whose device has begun; its fallback may still answer.
    """
    engine, tokens_per_s = router.speed(model)
    speeds = {"tokens-per-s": tokens_per_s, "published-tokens-per-s": engine.published_tokens_per_s}
    known = [f"{name}={speed:.1f}" for name, speed in speeds.items() if speed is not None]
    return {DEVICE: ";".join([engine.device, f"cpu-nodes={engine.placement.get('CPU', 0)}", *known])}


def json_response(payload: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> ASGIApp:
    body = _json.encode(payload)
    pairs = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in pairs.items()]

    async def reply(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": encoded})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return reply
