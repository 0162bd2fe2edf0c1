"""GET /gateway/live and /gateway/log: what the live view of the page shows. The page asks once a second."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

from litestar import get
from litestar.types import ASGIApp
from msgspec import Meta, Struct
from msgspec.structs import asdict

from gateway import __version__
from gateway.errors import InvalidRequest, quote
from gateway.lanes.breaker import Budget
from gateway.lanes.limits.limits import KeyUse
from gateway.lanes.limits.shared_keys import SharedKeys
from gateway.lanes.router import ModelInfo, Router
from gateway.lanes.status import LaneStatus
from gateway.monitoring.memory import Memory, MemoryReader
from gateway.monitoring.observers import Observers
from gateway.monitoring.recent import LogLine, LogRing, PrefixCache, RecentAnswer, RecentAnswers
from gateway.routes.respond import json_response
from gateway.server.openapi_operation import Parameter, openapi_opt
from gateway.server.request import HttpRequest, router_of

_NUMBER = re.compile(r"[0-9]{1,15}")
_NO_STORE = {"cache-control": "no-store"}
_AFTER = Parameter("after", "query", Annotated[int, Meta(ge=0, lt=10**15)], "Only what has a higher number than this.")


class LiveModel(LaneStatus, frozen=True, kw_only=True):
    aliases: tuple[str, ...]
    load_state: str  # that of the engine
    can_unload: bool  # it runs on this machine
    budget: Budget | None  # that of the breaker; None: it is off
    published_tokens_per_s: float | None  # of this model on this chip
    memory_mb: float | None  # None: it has no process
    prefix_cache: PrefixCache


class GatewayMemory(Struct, frozen=True):
    memory_mb: float  # of all processes but those of the models


class Live(Struct, frozen=True, kw_only=True):
    version: str
    started_at: float  # seconds since 1970, also `now`
    now: float
    chip: str  # "": no NPU is known
    config_file: str  # "": none
    has_usage: bool  # there is a history at /gateway/usage
    models: list[LiveModel]
    keys: list[KeyUse]  # API keys with limits
    answers: list[RecentAnswer]
    gateway: GatewayMemory


class Log(Struct, frozen=True):
    lines: list[LogLine]


class LiveSources:
    """What the two routes read. One for each gateway, in the state of the app.

    Args:
        config_file: for a person; "": none.
    """

    def __init__(self, router: Router, observers: Observers, config_file: str) -> None:
        self.config_file = config_file
        self.answers = RecentAnswers()
        self.log = LogRing()
        self.memory = MemoryReader(lambda: workers(router))
        observers.add(self.answers.add)


def _opt(summary: str, reply: type) -> dict[str, Any]:
    return openapi_opt(summary, reply=reply, raises=(InvalidRequest,), parameters=(_AFTER,))


@get("/gateway/live", opt=_opt("Get models, memory and the last answers", Live))
async def live(request: HttpRequest) -> ASGIApp:
    after, sources = after_of(request), sources_of(request)
    memory = await sources.memory.read()
    router: Router = request.app.state.router  # each key sees all models here: the gateway has no roles
    models = router.models()
    body = Live(
        version=__version__,
        started_at=request.app.state.started_at,
        now=time.time(),
        chip=next((model.status.engine.chip for model in models if model.status.engine.chip), ""),
        config_file=sources.config_file,
        has_usage=request.app.state.usage is not None,
        models=[_model(model, memory, sources.answers) for model in models],
        keys=[*request.app.state.limits.used(_keys_of(request) or [""])],
        answers=sources.answers.after(after),
        gateway=GatewayMemory(memory.gateway),
    )
    return json_response(body, headers=_NO_STORE)


def _keys_of(request: HttpRequest) -> list[str]:
    """The names of all keys."""
    shared: SharedKeys | None = request.app.state.shared_keys
    return [*router_of(request).config.server.api_keys, *(shared.names() if shared else ())]


@get("/gateway/log", opt=_opt("Get the last lines of the log", Log))
async def log(request: HttpRequest) -> ASGIApp:
    return json_response(Log(sources_of(request).log.after(after_of(request))), headers=_NO_STORE)


def sources_of(request: HttpRequest) -> LiveSources:
    sources: LiveSources = request.app.state.live
    return sources


def after_of(request: HttpRequest) -> int:
    """The query parameter `after`; 0 without it. Raises InvalidRequest."""
    values = request.query_params.getall("after", [])
    if not values:
        return 0
    if len(values) > 1 or not _NUMBER.fullmatch(values[0]):
        raise InvalidRequest(
            f"'after' must be one whole number from 0, not {quote(', '.join(values))}. Leave it out to get everything.",
            param="after",
        )
    return int(values[0])


def _model(model: ModelInfo, memory: Memory, answers: RecentAnswers) -> LiveModel:
    status = model.status
    return LiveModel(
        **asdict(status),
        aliases=model.aliases,
        load_state=status.engine.state,
        can_unload=status.engine.runtime != "upstream",
        budget=status.breaker.budget,
        published_tokens_per_s=status.engine.published_tokens_per_s,
        memory_mb=None if status.engine.pid is None else memory.models.get(model.name),
        prefix_cache=answers.prefix_cache(model.name),
    )


def workers(router: Router) -> dict[str, int]:
    """The process of each model that has one."""
    pids = {model.name: model.status.engine.pid for model in router.models()}
    return {name: pid for name, pid in pids.items() if pid is not None}
