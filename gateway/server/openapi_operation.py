"""What a route takes, gives and refuses, told beside its handler; `schema` makes the OpenAPI document of it."""

from __future__ import annotations

from typing import Any, Literal

from litestar.enums import HttpMethod
from msgspec import Struct, field

from gateway.errors import GatewayError
from gateway.server.sse import MEDIA_TYPE


class Parameter(Struct, frozen=True):
    """Something beside the body, never required."""

    name: str
    place: Literal["header", "query"]
    type: Any
    description: str


class Stream(Struct, frozen=True):
    """A reply in pieces: the type of one event's data, or of one line; `last` is an event that is no JSON."""

    piece: Any
    media_type: str = MEDIA_TYPE
    last: str = ""


class Operation(Struct, frozen=True, kw_only=True):
    """One route. `gives` None: it never succeeds, or has no body; `otherwise`: bodies that are no error, by status."""

    summary: str
    takes: Any = None
    gives: Any = None
    media_type: str = "application/json"
    streams: Stream | None = None
    otherwise: dict[int, Any] = field(default_factory=dict)
    raises: tuple[type[GatewayError], ...] = ()
    parameters: tuple[Parameter, ...] = ()


def told(summary: str, **fields: Any) -> dict[str, Any]:
    """The `opt` of a handler; `fields` are those of Operation."""
    operation = Operation(summary=summary, **fields)
    return {"operations": dict.fromkeys(HttpMethod, operation)}


def told_by_method(**operations: Operation) -> dict[str, Any]:
    """The `opt` of a handler of several methods."""
    return {"operations": operations}
