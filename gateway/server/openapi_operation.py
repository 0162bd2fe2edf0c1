"""The OpenAPI description of a route. It is attached to the handler; `routes/openapi.py` writes the document."""

from __future__ import annotations

from typing import Any, Literal

from litestar.enums import HttpMethod
from msgspec import Struct, field

from gateway.errors import GatewayError
from gateway.server.sse import MEDIA_TYPE


class Parameter(Struct, frozen=True):
    """An optional header or query parameter."""

    name: str
    location: Literal["header", "query"]
    type: Any
    description: str


class Stream(Struct, frozen=True):
    """A streamed reply. `item`: the type of one event's data, or of one line. `end`: a last event that is not JSON."""

    item: Any
    media_type: str = MEDIA_TYPE
    end: str = ""


class Operation(Struct, frozen=True, kw_only=True):
    """One method of one route.

    Args:
        body: the type of the request's JSON body; None: no body.
        reply: the type of the reply with status 200; None: the route never answers 200.
        stream: the streamed form of that reply, if the route has one.
        other_replies: types of replies that are not errors, by status.
        raises: the errors of this route besides those of every route.
    """

    summary: str
    body: Any = None
    reply: Any = None
    media_type: str = "application/json"
    stream: Stream | None = None
    other_replies: dict[int, Any] = field(default_factory=dict)
    raises: tuple[type[GatewayError], ...] = ()
    parameters: tuple[Parameter, ...] = ()
    path: str = ""  # as clients write it, if server/target.py replaces it; "": that of the route


def openapi_opt(summary: str, **fields: Any) -> dict[str, Any]:
    """The `opt` of a handler that describes all its methods alike. `fields`: those of `Operation`."""
    operation = Operation(summary=summary, **fields)
    return {"openapi": dict.fromkeys(HttpMethod, operation)}


def openapi_opt_by_method(**operations: Operation) -> dict[str, Any]:
    """The `opt` of a handler with one `Operation` for each method."""
    return {"openapi": operations}
