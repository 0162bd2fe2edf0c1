"""Applies a changed configuration to a running gateway, whole or not at all.

1. All new lanes are made before the first change, so that a mistake changes nothing. Then everything changes in one
   step of the event loop: no request sees a part of it.
2. A changed model gets a new lane. The old one answers what it has accepted, and only when its engine is closed is the
   new one loaded; requests that come meanwhile wait for that (lanes/memory/residency.py). A model that is renamed gets
   its memory in the same way.
3. A removed model answers what it has accepted. Keys that need no other engine apply to the lane that runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable, Iterable
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from msgspec.structs import replace

from gateway.config.tables import Config, ModelConfig
from gateway.errors import BundleError, Conflict, GatewayError
from gateway.lanes.lane import Lane
from gateway.lanes.memory.residency import Residency
from gateway.lanes.reload.plan import Plan, Reloaded, make_plan, renamed, with_keys_at_once
from gateway.lanes.router import Router

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)

#: Makes the lane of a model under a configuration, not started. It runs in a thread, because it reads files.
MakeLane = Callable[[str, ModelConfig, Config], Lane]


class InThread(Protocol):
    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]: ...


class Source(Protocol):
    """Reads the configuration again. Every method may block, and runs in a thread."""

    @property
    def running(self) -> Config:
        """What the gateway was started with, as the file has it."""

    def state(self) -> Hashable:
        """Another value after each change of the files."""

    def read(self) -> Config:
        """What is configured now, for the models that this gateway serves. Raises ConfigError."""

    def prepared(self, name: str, model: ModelConfig, models_dir: Path) -> ModelConfig:
        """The model with the path of its bundle. Raises BundleError: it is not there, or must be built first."""


class Reloader:
    """Args:
    on_change: applies what is not of a lane. It must not raise.
    in_thread: calls a function that blocks.
    """

    def __init__(
        self,
        router: Router,
        residency: Residency,
        source: Source,
        make_lane: MakeLane,
        on_change: Callable[[Config], None] = lambda config: None,
        in_thread: InThread = asyncio.to_thread,
    ) -> None:
        self.running = source.running  # what the gateway runs, as the file has it
        self.found: list[str] = []  # models that the watcher's last look has added: a reload after it reports them too
        self._router, self._residency = router, residency
        self._source = source
        self._make_lane = make_lane
        self._on_change = on_change
        self._in_thread = in_thread
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def reload(self) -> Reloaded:
        """Apply the configuration as it is now, and log what was done or why not.

        Raises:
            GatewayError: a mistake in it, or the gateway ends. Nothing has changed.
        """
        try:
            reloaded = await self.apply()
        except GatewayError as error:
            _log.error("the configuration is not applied, the gateway runs on with the last one: %s", error.message)
            raise
        found = [name for name in self.found if name in self.running.models and name not in reloaded.added]
        reloaded, self.found = replace(reloaded, added=found + reloaded.added), []
        _log.info("the configuration was read again; %s", "; ".join(reloaded.lines))
        return reloaded

    def begin(self) -> None:
        """Reload in the background. On the event loop. One that has not begun yet is enough for several calls."""
        if len(self._tasks) > 1:
            return
        task = asyncio.create_task(self._reload_in_background())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """End what `begin` began."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def apply(self, select: Callable[[Config, Config], Config] = lambda running, fresh: fresh) -> Reloaded:
        """Read the configuration and apply it. Raises GatewayError; then nothing has changed.

        Args:
            select: of the configuration that runs and the one that was read, what is to run.
        """
        async with self._lock:
            fresh = await self._in_thread(self._source.read)
            plan = make_plan(self.running, select(self.running, fresh))
            lanes = await self._made(plan)
            if self._router.is_closed:
                await _close(lanes.values())
                raise Conflict("The gateway ends.")
            self._switch(plan, lanes)
            return plan.report

    async def _reload_in_background(self) -> None:
        try:
            await self.reload()
        except GatewayError:  # it is in the log
            pass
        except Exception as error:
            _log.error("the configuration could not be read again", exc_info=error)

    async def _made(self, plan: Plan) -> dict[str, Lane]:
        """The new lanes: all, or none and the reason."""
        lanes: dict[str, Lane] = {}
        try:
            for name, model in plan.lanes.items():
                lanes[name] = await self._in_thread(self._lane, name, model, plan.config)
        except BaseException:
            await _close(lanes.values())
            raise
        return lanes

    def _lane(self, name: str, model: ModelConfig, config: Config) -> Lane:
        try:
            return self._make_lane(name, self._source.prepared(name, model, config.models_dir), config)
        except BundleError as error:
            raise BundleError(f"{name}: {error.message}") from None
        except GatewayError as error:
            raise Conflict(f"{name}: {error.message}") from None
        except Exception as error:
            _log.error("%s: its lane could not be made", name, exc_info=error)
            raise Conflict(f"{name}: {type(error).__name__}: {error}") from error

    # --- from here on without a pause: every request is before it or after it

    def _switch(self, plan: Plan, made: dict[str, Lane]) -> None:
        router, config = self._router, plan.config
        before = dict(router.lanes)
        for name, model in config.models.items():
            if name not in made:
                lane, breaker = before[name], model.breaker or config.breaker
                table = with_keys_at_once(lane.config, model)
                if (table, breaker) != (lane.config, lane.breaker.config):  # else it keeps what a client has set
                    lane.configure(table, breaker)
        router.update(config, {name: made.get(name) or before[name] for name in config.models})
        self._exchange(made, {name: lane for name, lane in before.items() if router.lanes.get(name) is not lane})
        self.running = config
        self._on_change(config)

    def _exchange(self, made: dict[str, Lane], old: dict[str, Lane]) -> None:
        """Start the new lanes, and end the old ones when they have answered."""
        for name, lane in made.items():
            tables = {each: gone.config for each, gone in old.items() if each not in made}
            previous = name if name in old else renamed(tables, lane.config)
            if previous is None:
                lane.start()
            else:
                self._residency.exchange(old.pop(previous), lane)
        for lane in old.values():
            self._residency.remove(lane)


async def _close(lanes: Iterable[Lane]) -> None:
    await asyncio.gather(*(lane.aclose() for lane in lanes))
