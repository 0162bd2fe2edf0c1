"""The gateway's own requests to a model whose breaker is open, so that no user's request has to be the guinea pig.

Probes pass by the lane's queue: its places may be held by the very requests that hang.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from gateway.config import ModelConfig, UpstreamModel
from gateway.engines.base import Engine
from gateway.errors import GatewayError
from gateway.generation import Chat, Event, Generation, Message, Meter, Prompt, Text
from gateway.lanes.breaker import Breaker, Outcome, Watch
from gateway.sampling import Sampling

_log = logging.getLogger(__name__)

_TOKENS = 4
_SHORTEST_PAUSE_S = 0.001
_READY_PAUSE_S = 1.0  # between looks at an engine that is being restarted


class Prober:
    """Asks a few tokens whenever the breaker lets it, until the breaker is closed."""

    def __init__(self, name: str, config: ModelConfig, engine: Engine, breaker: Breaker) -> None:
        self._name = name
        self._config = config
        self._engine = engine
        self._breaker = breaker

    async def run(self) -> None:
        """Return when the breaker is closed; what goes wrong is a failed probe and no more."""
        while (state := self._breaker.state) != "closed":
            if state == "open":
                await asyncio.sleep(max(self._breaker.retry_after_s, _SHORTEST_PAUSE_S))
            elif self._engine.status.state != "ready":
                await asyncio.sleep(_READY_PAUSE_S)
            else:
                await self._probe()

    async def _probe(self) -> None:
        """A few tokens, judged like any request."""
        meter = Meter()
        with self._breaker.admit(own_probe=True) as permit:
            watch = Watch(self._breaker, meter, permit, asyncio.get_running_loop().call_later)
            try:
                permit.settle(await self._ask(meter))
            finally:
                watch.stop()

    async def _ask(self, meter: Meter) -> Outcome:
        try:
            async with asyncio.timeout(self._config.watchdog_s), aclosing(self._stream(meter)) as events:
                async for _ in events:
                    pass
        except (GatewayError, TimeoutError):
            return "failed"
        except Exception:
            _log.exception("%s: the engine raised in a probe", self._name)
            return "failed"
        return "slow" if self._breaker.is_slow(meter) else "ok"

    def _stream(self, meter: Meter) -> AsyncGenerator[Event, None]:
        # A model of ours may have no chat template, a server elsewhere may offer nothing but chat.
        remote = isinstance(self._config, UpstreamModel)
        prompt: Prompt = Chat(messages=(Message(role="user", content="Hello"),)) if remote else Text("Hello")
        probe = Generation(
            id=f"probe-{self._name}",
            model=self._name,
            prompt=prompt,
            sampling=Sampling(temperature=0.0),
            max_tokens=_TOKENS,
        )
        return self._engine.stream(probe, meter)
