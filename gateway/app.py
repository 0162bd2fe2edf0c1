"""Connects all parts: from a configuration to an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.datastructures import State
from litestar.plugins import PluginProtocol
from litestar.plugins.core import MsgspecDIPlugin

from gateway.config.tables import Config, ModelConfig
from gateway.engines.base import Engine
from gateway.engines.factory import make_engine
from gateway.lanes.lane import Lane
from gateway.lanes.limits.counters import Counters
from gateway.lanes.limits.limits import Limits
from gateway.lanes.limits.shared import SharedCounters
from gateway.lanes.limits.shared_keys import SharedKeys
from gateway.lanes.memory.growth import Growth
from gateway.lanes.memory.manager import MemoryManager
from gateway.lanes.memory.needs import Needs, budget_bytes
from gateway.lanes.memory.residency import Residency
from gateway.lanes.reload.presence import Presence
from gateway.lanes.reload.reloader import Reloader, Source
from gateway.lanes.reload.upgrades import BetterBundles, Upgrades
from gateway.lanes.reload.watcher import Watcher
from gateway.lanes.router import Router
from gateway.monitoring.logs import set_level
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.observers import Observers
from gateway.monitoring.refusals import RefusalLog
from gateway.monitoring.traces import Traces
from gateway.monitoring.usage.history import UsageHistory
from gateway.routes import health, reload, stop, tokenize
from gateway.routes import openapi as schema
from gateway.routes.anthropic_api import routes as anthropic
from gateway.routes.embeddings_api import embeddings, rerank
from gateway.routes.error_handler import handle_error
from gateway.routes.ollama_api import embed as ollama_embed
from gateway.routes.ollama_api import models as ollama_models
from gateway.routes.ollama_api import routes as ollama
from gateway.routes.openai_api import chat, completions, load, models
from gateway.routes.page import live, page
from gateway.routes.page import usage as usage_route
from gateway.routes.page.files import web_files
from gateway.routes.page.live import LiveSources
from gateway.routes.responses_api import routes as responses
from gateway.routes.responses_api.responses import Responses
from gateway.server.body import limit_bodies
from gateway.server.guards import Guards, cors_of, fresh_keys, set_cors
from gateway.server.ignored import IgnoredLog
from gateway.server.request import add_headers
from gateway.state.access import Access
from gateway.state.database import Database


class App(Litestar):
    """Without the plugins for pydantic and attrs: no handler uses them, and to import pydantic takes 0.1 s."""

    @staticmethod
    def _get_default_plugins(plugins: list[PluginProtocol]) -> list[PluginProtocol]:
        return [*plugins, MsgspecDIPlugin()]


HANDLERS = [
    page.root,
    page.web_file,
    chat.chat_completions,
    completions.completions,
    responses.create_response,
    responses.stored_response,
    embeddings.embeddings,
    rerank.rerank,
    tokenize.tokenize,
    tokenize.detokenize,
    tokenize.apply_template,
    anthropic.messages,
    anthropic.count_tokens,
    ollama.chat,
    ollama.generate,
    ollama_embed.embed_texts,
    ollama_embed.embed_prompt,
    ollama_models.tags,
    ollama_models.show,
    ollama_models.running,
    ollama_models.version,
    models.list_models,
    models.get_model,
    load.load_model,
    load.unload_model,
    health.healthz,
    health.readyz,
    health.metrics,
    stop.stop,
    reload.reload,
    live.live,
    live.log,
    usage_route.usage,
    schema.schema,
]
_BODIES_IN_MEMORY = 4  # all requests together may hold this number of bodies of `max_body_bytes`, or more small ones


def create_app(
    config: Config,
    engines: Mapping[str, Engine] | None = None,
    source: Source | None = None,
    better_bundles: BetterBundles | None = None,
    config_file: str = "",
    usage: UsageHistory | None = None,
    stop_token: str = "",
    needs: Needs | None = None,
    counters: Counters | None = None,
    database: Database | None = None,
) -> Litestar:
    """The ASGI application. The start of its lifespan starts to load the models, and does not wait for them.

    Args:
        engines: an engine for each model by name, not started; None: made from the configuration.
        source: reads the configuration again; None: it does not change.
        better_bundles: builds bundles while the models answer from others; None: nothing does.
        config_file: where the configuration is from, for the page; "": no file.
        usage: gets the record of each request; None: no usage is kept.
        stop_token: a program that sends it from this machine can stop and reload the gateway; "": no request can.
        needs: the memory that models need; None: nothing is known from earlier starts, and nothing is kept.
        counters: what the API keys have used of their limits; None: this gateway counts alone, from its start.
        database: of `[state]`; None: this gateway shares nothing.
    """
    metrics = Metrics()
    memory = MemoryManager(budget_bytes(config.memory), needs)

    def lane_of(name: str, model: ModelConfig, config: Config, engine: Engine | None = None) -> Lane:
        engine = engine or make_engine(name, model, config.models_dir, memory.budget_bytes)
        breaker = model.breaker or config.breaker
        longest_s = config.server.timeout_s
        return Lane(name, model, engine, breaker, metrics=metrics, timeout_s=longest_s, memory=memory)

    def make_lane(name: str, model: ModelConfig) -> Lane:
        return lane_of(name, model, router.config)

    lanes = {
        name: lane_of(name, model, config, engines[name] if engines else None) for name, model in config.models.items()
    }
    observers = Observers()
    if usage is not None:
        observers.add(usage.add)
    observers.add(metrics.answered)
    access = Access(database, "Answers go on.") if database else None
    shared = access if config.state.url else None
    limits = Limits(config.limits, SharedCounters(shared) if shared and counters is None else counters)
    observers.add(limits.ended)
    traces = Traces(config.traces.endpoint) if config.traces.endpoint else None
    if traces is not None:
        observers.add(traces.ended)
    router = Router(config, lanes, observers=observers)
    residency = Residency(router, lambda name, model: asyncio.to_thread(make_lane, name, model))  # it reads files
    keys = SharedKeys(access, limits.share) if access and config.state.keys else None
    guards = Guards(config.server, keys)
    stored = Responses(shared, config.state.responses_days)

    def apply(config: Config) -> None:
        guards.apply(config.server)
        limits.apply(config.limits)
        set_cors(app, config.server)
        app.state.pop("schema", None)
        set_level(config.log.level)
        memory.set_budget(budget_bytes(config.memory))
        if usage is not None:
            usage.store.days = config.usage.days
        stored.shared.days = config.state.responses_days

    reloader = Reloader(router, residency, source, lane_of, apply) if source else None
    presence = Presence()
    upgrades = [Upgrades(better_bundles, make_lane, presence=presence)] if better_bundles else []
    watcher = [Watcher(reloader, source, presence=presence)] if reloader and source else []
    bodies = limit_bodies(lambda: router.config.server.max_body_bytes, _BODIES_IN_MEMORY, guards.check, presence)
    app = App(
        HANDLERS,
        state=State(
            {
                "router": router,
                "residency": residency,
                "memory": memory,
                "stop_token": stop_token,
                "is_stopping": False,
                "reloader": reloader,
                "metrics": metrics,
                "limits": limits,
                "shared_keys": keys,
                "presence": presence,
                "usage": usage,
                "live": LiveSources(router, observers, config_file),
                "traces": traces,
                "responses": stored,
                "access": access,
                "ignored_log": IgnoredLog(),
                "refusals": RefusalLog(metrics),
                "parser": ThreadPoolExecutor(1, "parser"),
                "started_at": int(time.time()),
                "background": [*watcher, *upgrades],
            }
        ),
        lifespan=[_lifespan],
        middleware=[*([fresh_keys(keys)] if keys else []), bodies],
        cors_config=cors_of(config.server),
        exception_handlers={Exception: handle_error},
        before_send=[add_headers],
        request_max_body_size=None,  # server/body.py limits it
        logging_config=None,
        openapi_config=None,
        debug=False,  # without this, Litestar reads it from the environment
        pdb_on_exception=False,
    )
    return app


@asynccontextmanager
async def _lifespan(app: Litestar) -> AsyncGenerator[None, None]:
    web_files()  # as they are now: an upgrade may change them while this version runs
    router: Router = app.state.router
    log = app.state.live.log
    logging.getLogger().addHandler(log)
    await router.start()
    residency: Residency = app.state.residency
    background = [asyncio.create_task(each.run(router)) for each in app.state.background]
    memory: MemoryManager = app.state.memory
    background += [
        asyncio.create_task(memory.run(residency.release)),
        asyncio.create_task(Growth(memory, lambda: live.workers(router)).run()),
    ]
    try:
        yield
    finally:
        logging.getLogger().removeHandler(log)
        for task in background:
            task.cancel()
        if app.state.reloader is not None:
            await app.state.reloader.aclose()
        await residency.aclose()
        await router.aclose()
        if app.state.traces is not None:
            await asyncio.to_thread(app.state.traces.close)
        if isinstance(app.state.limits.counters, SharedCounters):
            await app.state.limits.counters.aclose()
        if app.state.access is not None:
            await app.state.access.aclose()
        app.state.parser.shutdown(wait=False, cancel_futures=True)
