"""A router whose configuration a test changes, over scripted engines in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from msgspec.structs import replace

from gateway.config.tables import BreakerConfig, Config, ModelConfig, ScriptedModel
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import BundleError, GatewayError
from gateway.lanes.lane import Lane
from gateway.lanes.memory.residency import Residency
from gateway.lanes.reload.reloader import Reloader
from gateway.lanes.router import Router
from gateway.monitoring.metrics import Metrics
from tests.support.routing import BREAKER, answer_of, model, request
from tests.support.server import config_of
from tests.support.virtual_time import now

T = TypeVar("T")
LOAD_S = 5.0


class Engine(ScriptedEngine):
    """Counts the engines of its model that are in memory, from the begin of the load to the end of `aclose`."""

    in_memory: ClassVar[Counter[str]] = Counter()

    def __init__(self, name: str, table: ScriptedModel) -> None:
        super().__init__(name, table, clock=now)
        self._is_counted = False

    async def start(self) -> None:
        if not self._is_counted:
            assert not Engine.in_memory[self._name], "two engines of one model are in memory"
            Engine.in_memory[self._name] += 1
            self._is_counted = True
        await super().start()

    async def aclose(self) -> None:
        await super().aclose()
        await asyncio.sleep(0.5)  # a worker needs some time to end
        Engine.in_memory[self._name] -= self._is_counted
        self._is_counted = False


class File:
    """A configuration that a test changes. Implements `Source`."""

    def __init__(self, config: Config) -> None:
        self.running = self.config = config
        self.fault: GatewayError | None = None
        self.unbuilt: set[str] = set()  # models without a bundle
        self.writes = 0

    def state(self) -> Hashable:
        return id(self.config), id(self.fault), self.writes

    def read(self) -> Config:
        if self.fault:
            raise self.fault
        return self.config

    def prepared(self, name: str, model: ModelConfig, models_dir: Path) -> ModelConfig:
        if name in self.unbuilt:
            raise BundleError("It has no bundle yet.")
        return model

    def write(self, **changes: Any) -> None:
        self.config = replace(self.config, **changes)

    def models(self, **models: ScriptedModel) -> None:
        self.write(models=models)


class Gateway:
    def __init__(self, models: Mapping[str, ScriptedModel], **tables: Any) -> None:
        Engine.in_memory = Counter()
        config = config_of(models, **{"breaker": BREAKER, **tables})
        self.metrics = Metrics()
        self.lanes: list[Lane] = []  # that were made
        self.file = File(config)
        self.router = Router(config, {name: self.lane(name, table, config) for name, table in models.items()}, now)
        self.residency = Residency(self.router, self.late_lane)
        self.applied: list[Config] = []
        self.reloader = Reloader(
            self.router, self.residency, self.file, self.lane, self.applied.append, in_thread=slowly
        )

    def lane(self, name: str, table: ModelConfig, config: Config) -> Lane:
        assert isinstance(table, ScriptedModel)
        if table.dialect == "fails":
            raise OSError("disk")
        breaker = table.breaker or config.breaker
        self.lanes.append(Lane(name, table, Engine(name, table), breaker, metrics=self.metrics, clock=now))
        return self.lanes[-1]

    async def late_lane(self, name: str, table: ModelConfig) -> Lane:
        await asyncio.sleep(0.1)
        return self.lane(name, table, self.router.config)

    def ask(self, name: str = "main", **fields: Any) -> asyncio.Task[tuple[str, str]]:
        return asyncio.create_task(answer_of(self.router, request(name, **fields)))


async def slowly(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    await asyncio.sleep(0.1)
    return function(*args, **kwargs)


@asynccontextmanager
async def gateway(tables: Mapping[str, Any] | None = None, /, **models: ScriptedModel) -> AsyncIterator[Gateway]:
    made = Gateway(models, **(tables or {}))
    await made.router.start()
    await made.router.tried()
    try:
        yield made
    finally:
        await made.reloader.aclose()
        await made.residency.aclose()
        await made.router.aclose()
        assert not +Engine.in_memory, "an engine is left"
        assert {lane.engine.status.state for lane in made.lanes} == {"closed"}


def slow(reply: str = "fine", **fields: Any) -> ScriptedModel:
    """A model that loads in 5 s and answers in 10 s."""
    return model(reply, load_s=LOAD_S, ttft_s=10.0, **{"breaker": BreakerConfig(enabled=False), **fields})
