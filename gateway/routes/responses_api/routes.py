"""POST /v1/responses, and GET and DELETE of what it has kept."""

from __future__ import annotations

from typing import cast

import msgspec
from litestar import post, route
from litestar.enums import HttpMethod
from litestar.params import FromPath
from litestar.types import ASGIApp

from gateway.config import Defaults
from gateway.errors import InvalidRequest, NotFound, UnsupportedParameter
from gateway.generation import Generation
from gateway.routes.openai_api.parse import sampling_of
from gateway.routes.openai_api.wire import GenerationFields
from gateway.routes.respond import answer, generation_opt, json_response
from gateway.routes.responses_api.parse import Placed, chat_of, grammar_of, placed_items
from gateway.routes.responses_api.render import ResponsesRendering
from gateway.routes.responses_api.store import ResponseStore
from gateway.routes.responses_api.wire import AnyEvent, Response, ResponseDeleted, ResponsesRequest
from gateway.server.body import read_json
from gateway.server.openapi_operation import Operation, Parameter, Stream, openapi_opt_by_method
from gateway.server.request import HttpRequest, owner_of, request_number, router_of

_decoder = msgspec.json.Decoder(ResponsesRequest)
_CREATE = generation_opt("Answer a chat (Responses API)", ResponsesRequest, Response, Stream(AnyEvent))
_STREAM = Parameter("stream", "query", bool, "Not true: what is kept is not streamed again.")
_KEPT = openapi_opt_by_method(
    GET=Operation(
        summary="A response that was kept", reply=Response, raises=(InvalidRequest, NotFound), parameters=(_STREAM,)
    ),
    DELETE=Operation(summary="Forget a response", reply=ResponseDeleted, raises=(NotFound,)),
)


@post(["/v1/responses", "/responses"], status_code=200, opt=_CREATE)
async def create_response(request: HttpRequest) -> ASGIApp:
    asked = await read_json(request, _decoder)
    store, owner = _store_of(request), owner_of(request)
    defaults = router_of(request).defaults_for(asked.model)
    placed = placed_items(asked, store, owner)
    generation = response_generation(asked, placed, defaults, id=f"resp_{request_number(request.scope)}")

    def keep(response: Response) -> None:
        if response.store:
            store.put(owner, response, tuple(item for _, item in placed))

    return await answer(request, generation, ResponsesRendering(asked, generation, keep), stream=bool(asked.stream))


# One handler: Litestar's own answer to OPTIONS names the methods of the first handler of a path only.
@route(
    ["/v1/responses/{response_id:str}", "/responses/{response_id:str}"],
    http_method=[HttpMethod.GET, HttpMethod.DELETE],
    status_code=200,
    opt=_KEPT,
)
async def kept_response(request: HttpRequest, response_id: FromPath[str]) -> ASGIApp:
    store, owner = _store_of(request), owner_of(request)
    if request.method == HttpMethod.DELETE:
        store.delete(owner, response_id)
        return json_response(ResponseDeleted(id=response_id))
    if request.query_params.get("stream") == "true":
        raise UnsupportedParameter("A response that is kept is not streamed again.", param="stream")
    return json_response(store.get(owner, response_id).response)


def _store_of(request: HttpRequest) -> ResponseStore:
    return cast(ResponseStore, request.app.state.responses)


def response_generation(request: ResponsesRequest, placed: list[Placed], defaults: Defaults, *, id: str) -> Generation:
    """Raises InvalidRequest, its `param` the field at fault."""
    _refuse_unsupported(request)
    return Generation(
        id=id,
        model=request.model or "",
        prompt=chat_of(request, placed),
        sampling=sampling_of(GenerationFields(temperature=request.temperature, top_p=request.top_p), defaults),
        max_tokens=request.max_output_tokens or defaults.max_tokens,
        logprobs=_logprobs(request),
        grammar=grammar_of(request),
        background=request.service_tier == "flex",
    )


def _logprobs(request: ResponsesRequest) -> int | None:
    wanted = request.top_logprobs is not None or "message.output_text.logprobs" in (request.include or ())
    return (request.top_logprobs or 0) if wanted else None


def _refuse_unsupported(request: ResponsesRequest) -> None:
    for name, asks, instead in (
        ("background", request.background, "keep the connection open instead"),
        ("conversation", request.conversation, "send 'previous_response_id'"),
        ("prompt", request.prompt, "send 'instructions' and 'input'"),
        ("truncation", request.truncation == "auto", "a conversation that is too long is refused, never cut"),
    ):
        if asks:
            raise UnsupportedParameter(f"Unsupported parameter: '{name}': {instead}.", param=name)
