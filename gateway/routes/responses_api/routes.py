"""POST /v1/responses; GET and DELETE of a stored response."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import cast

import msgspec
from litestar import post, route
from litestar.enums import HttpMethod
from litestar.params import FromPath
from litestar.types import ASGIApp
from msgspec.structs import replace

from gateway.errors import InvalidRequest, NotFound, Unavailable, UnsupportedParameter
from gateway.routes.respond import answer, generation_opt, json_response, truncation_of
from gateway.routes.responses_api.parse import response_generation
from gateway.routes.responses_api.parse_items import located_items
from gateway.routes.responses_api.render import ResponsesRendering
from gateway.routes.responses_api.responses import Responses
from gateway.routes.responses_api.wire import ResponsesRequest
from gateway.routes.responses_api.wire_response import AnyEvent, Response, ResponseDeleted
from gateway.server.body import by_size, read_json
from gateway.server.openapi_operation import Operation, Parameter, Stream, openapi_opt_by_method
from gateway.server.request import HttpRequest, owner_of, request_number, router_of
from gateway.server.sse import EventStream

_decoder = msgspec.json.Decoder(ResponsesRequest)
_CREATE = generation_opt("Answer a chat (Responses API)", ResponsesRequest, Response, Stream(AnyEvent))
_STREAM = Parameter("stream", "query", bool, "Must not be true: a stored response cannot be streamed.")
_STORED = openapi_opt_by_method(
    GET=Operation(
        summary="Get a stored response",
        reply=Response,
        raises=(InvalidRequest, NotFound, Unavailable),
        parameters=(_STREAM,),
    ),
    DELETE=Operation(summary="Delete a stored response", reply=ResponseDeleted, raises=(NotFound, Unavailable)),
)


@post(["/v1/responses", "/responses"], status_code=200, opt=_CREATE)
async def create_response(request: HttpRequest) -> ASGIApp:
    body = await read_json(request, _decoder)
    responses, owner = _responses_of(request), owner_of(request)
    defaults = router_of(request).defaults_for(body.model)
    items = located_items(body, await responses.view(owner, body), owner)
    id = f"resp_{request_number(request.scope)}"
    generation = await by_size(request, response_generation, body, items, defaults, id=id)

    generation = replace(generation, truncation=truncation_of(request, generation.truncation))  # the reply has it
    loop = asyncio.get_running_loop()
    stored: list[Future[None]] = []

    def save(response: Response) -> None:  # a long answer is rendered in a thread
        if response.store:
            put = responses.put(owner, response, tuple(item for _, item in items))
            stored.append(asyncio.run_coroutine_threadsafe(put, loop))

    async def is_stored() -> None:
        """The next request can go to another gateway."""
        while stored:
            await asyncio.shield(asyncio.wrap_future(stored.pop()))

    reply = await answer(request, generation, ResponsesRendering(body, generation, save), stream=bool(body.stream))
    if isinstance(reply, EventStream):
        reply.before_frames = is_stored if responses.is_shared else None
    elif responses.is_shared:
        await is_stored()
    return reply


# One handler for both methods: Litestar's reply to OPTIONS lists only the methods of a path's first handler.
@route(
    ["/v1/responses/{response_id:str}", "/responses/{response_id:str}"],
    http_method=[HttpMethod.GET, HttpMethod.DELETE],
    status_code=200,
    opt=_STORED,
)
async def stored_response(request: HttpRequest, response_id: FromPath[str]) -> ASGIApp:
    responses, owner = _responses_of(request), owner_of(request)
    if request.method == HttpMethod.DELETE:
        await responses.delete(owner, response_id)
        return json_response(ResponseDeleted(id=response_id))
    if request.query_params.get("stream") == "true":
        raise UnsupportedParameter("A stored response cannot be streamed. Remove 'stream'.", param="stream")
    return json_response(await responses.get(owner, response_id))


def _responses_of(request: HttpRequest) -> Responses:
    return cast(Responses, request.app.state.responses)
