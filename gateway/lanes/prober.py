"""The gateway's own requests to a model whose circuit breaker is open, so that no request of a user is the test.

Probes do not go through the admission queue: its slots may be held by the requests that hang.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from msgspec.structs import replace

from gateway.config.tables import ModelConfig, UpstreamModel
from gateway.embedding import Inputs
from gateway.engines.base import Engine
from gateway.errors import GatewayError
from gateway.generation import Chat, Event, Generation, Message, Meter, Prompt, Text
from gateway.lanes.admission import AdmissionQueue
from gateway.lanes.breaker import Breaker, Outcome, State, outcome
from gateway.lanes.run import Watch
from gateway.lanes.status import log_breaker
from gateway.monitoring.metrics import Metrics
from gateway.sampling import Sampling

_log = logging.getLogger(__name__)

_TOKENS = 4
_MIN_PAUSE_S = 0.001
_READY_PAUSE_S = 1.0  # between looks at an engine that is restarting, and after a probe without a result


class _Discard:
    """An Emit without a reader."""

    def __call__(self, event: Event) -> None: ...

    def begin(self) -> None: ...

    async def drain(self) -> None: ...


class Prober:
    """Sends short requests whenever the breaker permits one, until the breaker is closed."""

    def __init__(self, name: str, config: ModelConfig, engine: Engine, breaker: Breaker) -> None:
        self._name = name
        self._engine = engine
        self._breaker = breaker
        self._watchdog_s = config.watchdog_s
        # A local model may have no chat template; another server may have no endpoint but chat.
        is_remote = isinstance(config, UpstreamModel)
        prompt: Prompt = Chat(messages=(Message(role="user", content="Hello"),)) if is_remote else Text("Hello")
        self._generation = Generation(
            id=f"probe-{name}", model=name, prompt=prompt, sampling=Sampling(temperature=0.0), max_tokens=_TOKENS
        )

    async def run(self) -> None:
        """Return when the breaker is closed. An error of a probe is a judgement or nothing, and no more."""
        while (state := self._breaker.state) != "closed":
            if state == "open":
                await asyncio.sleep(max(self._breaker.retry_after_s, _MIN_PAUSE_S))
            elif self._engine.status.state != "ready":
                await asyncio.sleep(_READY_PAUSE_S)
            elif await self._probe() == "released":
                await asyncio.sleep(_READY_PAUSE_S)  # nothing was learned: the next probe can be no better at once

    async def _probe(self) -> Outcome:
        """One request, judged like any other."""
        meter = Meter(clock=self._breaker.clock)
        with self._breaker.admit(own_probe=True) as permit:
            watch = Watch(self._breaker, meter, permit, asyncio.get_running_loop().call_later)
            try:
                result = await self._outcome(meter)
                permit.settle(result, meter)
                return result
            finally:
                watch.stop()

    def _probe_request(self) -> Generation:
        """What this kind of model answers, known when it is loaded."""
        capabilities = self._engine.status.capabilities
        if "embeddings" in capabilities:
            return replace(self._generation, prompt=Inputs(texts=("Hello",)))
        if "rerank" in capabilities:
            return replace(self._generation, prompt=Inputs(pairs=(("Hello", "Hello"),)))
        return self._generation

    async def _outcome(self, meter: Meter) -> Outcome:
        try:
            async with asyncio.timeout(self._watchdog_s):
                prepared = await self._engine.prepare(self._probe_request())
                await self._engine.run(prepared, meter, _Discard())
        except GatewayError as error:
            return outcome(error)
        except TimeoutError:
            return "released"  # the watch has judged the device's part of the time
        except Exception:
            _log.exception("%s: the engine raised in a probe", self._name)
            return "released"
        return "slow" if self._breaker.is_slow(meter) else "ok"


class Breaking(Protocol):
    """What BreakerChanges needs of a lane."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> ModelConfig: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def queue(self) -> AdmissionQueue: ...
    @property
    def breaker(self) -> Breaker: ...
    @property
    def is_closed(self) -> bool: ...


class BreakerChanges:
    """What follows when the breaker of a lane changes: a log line, refusals, probes.

    Args:
        spawn: starts a task that the lane ends.
    """

    def __init__(
        self, lane: Breaking, metrics: Metrics, spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    ) -> None:
        self._lane, self._metrics, self._spawn = lane, metrics, spawn
        self._probing: asyncio.Task[None] | None = None

    def changed(self, state: State) -> None:
        lane = self._lane
        self._metrics.breaker_changed(lane.name, state)
        log_breaker(lane.name, lane.breaker, state, lane.config.fallback)
        if state == "open":
            lane.queue.refuse_waiting()
            lane.engine.breaker_opened()
            self._start_probing(lane)

    def _start_probing(self, lane: Breaking) -> None:
        is_probing = self._probing is not None and not self._probing.done()
        if lane.breaker.config.probe_itself and not is_probing and not lane.is_closed:
            self._probing = self._spawn(Prober(lane.name, lane.config, lane.engine, lane.breaker).run())
