"""/healthz: the process is alive. /readyz: a model is ready and the gateway does not stop. /metrics: for Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from litestar import get
from litestar.response.base import ASGIResponse
from litestar.types import ASGIApp
from msgspec import Struct

from gateway.lanes.status import LaneStatus
from gateway.monitoring.metrics import CONTENT_TYPE
from gateway.routes.respond import json_response
from gateway.server.guards import OPEN
from gateway.server.openapi_operation import openapi_opt
from gateway.server.request import HttpRequest, router_of


class Health(Struct):
    status: str


class Readiness(Struct):
    ready: bool
    models: list[LaneStatus]


@get(["/healthz", "/health"], opt=OPEN | openapi_opt("Check that the process is alive", reply=Health))
async def healthz() -> ASGIApp:
    return json_response(Health("ok"))


@get("/readyz", opt=OPEN | openapi_opt("Check that a model is ready", reply=Readiness, other_replies={503: Readiness}))
async def readyz(request: HttpRequest) -> ASGIApp:
    models = router_of(request).status()
    ready = can_answer(models) and not request.app.state.is_stopping
    return json_response(Readiness(ready, models), status=200 if ready else 503)


def can_answer(models: Sequence[LaneStatus]) -> bool:
    """True if a model can answer. One that waits for its first request does not count while another one starts."""
    starts = any(model.engine.state == "loading" and not model.loads_on_demand for model in models)
    return any(model.is_ready and not (starts and model.loads_on_demand) for model in models)


@get("/metrics", opt=openapi_opt("Get the metrics in the Prometheus format", reply=str, media_type="text/plain"))
async def metrics(request: HttpRequest) -> ASGIApp:
    memory = await request.app.state.live.memory.read()
    text = await request.app.state.metrics.scrape({"(gateway)": memory.gateway, **memory.models})
    return ASGIResponse(body=text, headers={"content-type": CONTENT_TYPE})
