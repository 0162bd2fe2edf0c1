"""GET /gateway/usage: requests and tokens of the last days, by day, model and key."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Annotated

import msgspec
from litestar import get
from litestar.types import ASGIApp
from msgspec import Meta

from gateway.errors import InvalidRequest, NotFound, Unavailable, quote
from gateway.monitoring.usage.history import UsageHistory
from gateway.monitoring.usage.report import (
    DIMENSIONS,
    MAX_DAYS,
    Selection,
    UsageReport,
    dimensions_of,
    first_hour,
    report_of,
)
from gateway.routes.respond import json_response
from gateway.server.openapi_operation import Parameter, openapi_opt
from gateway.server.request import HttpRequest
from gateway.state.database import StateError

_DEFAULT_DAYS = 7
_DAYS = Parameter("days", "query", Annotated[int, Meta(ge=1, le=MAX_DAYS)], "The last days, with today. 7 by default.")
_BY = Parameter("by", "query", str, "Adds `rows` by these together: day, model, key, with commas.")
_MODEL = Parameter("model", "query", str, "Only the requests of this model.")
_KEY = Parameter("key", "query", str, "Only the requests of the API key with this name.")


@get(
    "/gateway/usage",
    opt=openapi_opt(
        "Get requests and tokens of the last days",
        reply=UsageReport,
        raises=(InvalidRequest, NotFound, Unavailable),
        parameters=(_DAYS, _BY, _MODEL, _KEY),
    ),
)
async def usage(request: HttpRequest) -> ASGIApp:
    """Every key sees the usage of all keys: the gateway has no roles."""
    days, selection = _days_of(request), _selection_of(request)
    history: UsageHistory | None = request.app.state.usage
    if history is None:
        raise NotFound("This gateway keeps no usage history: 'enabled' in '[usage]' of its config is false.")
    try:
        report = await asyncio.to_thread(_report, history, days, selection)
    except StateError:
        raise Unavailable("The usage history cannot be read now. The gateway's log has the reason.") from None
    return json_response(report, headers={"cache-control": "no-store"})


def _report(history: UsageHistory, days: int, selection: Selection) -> msgspec.Raw:
    """Encoded here: it can have thousands of rows."""
    now = time.time()
    report = report_of(history.rows(first_hour(days, now)), days, now, selection)
    return msgspec.Raw(msgspec.json.encode(report))


def _selection_of(request: HttpRequest) -> Selection:
    by, model, key = (request.query_params.getall(name, [])[-1:] for name in ("by", "model", "key"))
    try:
        dimensions = dimensions_of(by[0]) if by else ()
    except ValueError as error:
        known = ", ".join(DIMENSIONS)
        raise InvalidRequest(f"'by' must be of {known}, with commas, not {quote(str(error))}.", param="by") from None
    return Selection(dimensions, *(each[0] if each else None for each in (model, key)))


def _days_of(request: HttpRequest) -> int:
    values = request.query_params.getall("days", [])
    text = values[0] if len(values) == 1 else ", ".join(values)
    if not values:
        return _DEFAULT_DAYS
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_DAYS:
        raise InvalidRequest(
            f"'days' must be one whole number from 1 to {MAX_DAYS}, not {quote(text)}. Leave it out to get "
            f"{_DEFAULT_DAYS} days.",
            param="days",
        )
    return int(text)
