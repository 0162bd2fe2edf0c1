"""Concurrent requests to models whose workers are killed, die, hang and fail at random. Checks that nothing is left.

Everything from the router to the frames is the gateway's own code. Only the model behind the frames is not real.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import random
import threading
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import psutil
from msgspec.structs import replace

from gateway.activity import Activity
from gateway.config.tables import BreakerConfig, Config, LocalModel
from gateway.errors import BreakerOpen, GatewayError, ModelNotReady, QueueFull
from gateway.generation import Finished, Generation, TokenIds
from gateway.lanes.lane import Lane
from gateway.lanes.router import Router
from gateway.sampling import Sampling
from tests.support.virtual_time import Inline, VirtualLoop
from tests.system.storm.engine import StormEngine
from tests.system.storm.worker import CALL_FAILURE, DIE, HANG, RAISE

CLIENTS = 16
FAULTY = ("first", "second")
HEALTHY = "healthy"  # the model without faults
LONGEST_PAUSE_S = 0.1  # between two starts of a worker
REFUSED_S = 0.5  # pause of a client whose request was refused
LOST_S = 300.0  # a request that takes longer is lost
ANSWERED, LEFT, LOST = "answered", "its client left", "it never ended"
CALL_FAILED, WORKER_ENDED = "the call failed", "its worker ended"


class Storm:
    """One run. `counts` has the endings of all requests, `failures` the endings that must not occur.

    Args:
        bundle: of a tiny model; only its tokenizer and configuration are used.
        events: run until there were this many events ...
        restarts: ... and this many of them were ends of workers.
        processes: run workers as processes, and not as tasks.
        seed: of the random choices.
    """

    def __init__(self, bundle: Path, events: int, restarts: int, *, processes: bool, seed: int) -> None:
        self._events, self._restarts, self._processes = events, restarts, processes
        self._random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.memory_mb: list[float] = []
        healthy = LocalModel(path=str(bundle), queue=CLIENTS)
        faulty = replace(healthy, watchdog_s=1.0 if processes else 5.0)
        breaker = BreakerConfig(enabled=not processes, latency_ms=2000, open_s=0.5)
        models = {**dict.fromkeys(FAULTY, faulty), HEALTHY: healthy}
        clock = asyncio.get_running_loop().time
        self._engines = {name: StormEngine(name, model, bundle.parent, processes) for name, model in models.items()}
        lanes = {
            name: Lane(name, model, self._engines[name], breaker, clock=clock, sleep=_short_pause)
            for name, model in models.items()
        }
        self._router = Router(Config(models={**models}, breaker=breaker), lanes, clock)

    @property
    def events(self) -> int:
        """Number of failed calls that a request reported, and of ended workers."""
        return self.counts[CALL_FAILED] + self.restarts

    @property
    def _goes_on(self) -> bool:
        return (self.events < self._events or self.restarts < self._restarts) and not self.failures

    @property
    def restarts(self) -> int:
        return sum(self._engines[name].status.restarts for name in FAULTY)

    async def run(self) -> None:
        """Raises AssertionError if something is left over."""
        shared = Activity(multiprocessing.get_context("spawn"))  # the first one opens a file that stays
        threads, files, children = _threads(), _open_files(), multiprocessing.active_children()
        await self._router.start()
        await self._router.tried()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())
            group.create_task(self._kill_workers())
            group.create_task(self._watch_memory())
        await self._router.aclose()
        del shared
        assert not self.failures, self.failures[:5]
        assert not set(multiprocessing.active_children()) - set(children)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert not _threads() - threads, _threads() - threads  # those of other tests may end meanwhile
        assert _open_files() <= files + 1, (files, _open_files())

    async def _client(self) -> None:
        while self._goes_on:
            await self._send(self._random.choice((*FAULTY, *FAULTY, HEALTHY)))

    async def _send(self, model: str) -> None:
        """Send one request and count its ending."""
        stay_s = self._random.choice((LOST_S, LOST_S, LOST_S, self._random.random()))
        try:
            async with asyncio.timeout(stay_s):
                ending = await self._read(model)
        except TimeoutError:
            ending = LEFT if stay_s < LOST_S else LOST
        self.counts[ending] += 1
        if ending == LOST or (model == HEALTHY and ending not in (ANSWERED, LEFT)):
            self.failures.append(f"{model}: {ending}")

    async def _read(self, model: str) -> str:
        try:
            opened = await self._router.open(self._request(model))
        except (BreakerOpen, QueueFull, ModelNotReady) as error:
            await asyncio.sleep(REFUSED_S)
            return f"refused: {error.code}"
        except GatewayError as error:
            return self._ending_of(error)
        async with aclosing(opened) as events:
            try:
                finishes = [event async for event in events if isinstance(event, Finished)]
            except GatewayError as error:
                ending = self._ending_of(error)
            else:
                ending = ANSWERED if len(finishes) == 1 else f"{len(finishes)} ends"
            async for event in events:
                self.failures.append(f"{model}: {event} after its end")
        return ending

    def _ending_of(self, error: GatewayError) -> str:
        if error.code not in ("engine_failed", "model_not_ready"):
            self.failures.append(f"{error.code}: {error}")
        return CALL_FAILED if error.message == CALL_FAILURE else WORKER_ENDED

    def _request(self, model: str) -> Generation:
        tokens = self._random.randint(1, 12)
        fault = 40
        if model != HEALTHY and self._random.random() < 0.25:
            (fault,) = self._random.choices((RAISE, DIE, HANG), (90, 5, 5) if self._processes else (60, 20, 20))
        prompt = TokenIds((40, 41, self._random.randrange(tokens), fault))
        return Generation(id="r", model=model, prompt=prompt, sampling=Sampling(temperature=0.0), max_tokens=tokens)

    async def _kill_workers(self) -> None:
        while self._goes_on:
            await asyncio.sleep(self._random.uniform(0.2, 2.0))
            self._engines[self._random.choice(FAULTY)].kill_worker()

    async def _watch_memory(self) -> None:
        for tenth in range(1, 11):
            while self._goes_on and self.events < self._events * tenth / 10:  # noqa: ASYNC110 (several tasks count the events)
                await asyncio.sleep(0.1)
            gc.collect()
            self.memory_mb.append(psutil.Process().memory_info().rss / 2**20)


async def _short_pause(seconds: float) -> None:
    await asyncio.sleep(min(seconds, LONGEST_PAUSE_S))


def _threads() -> set[threading.Thread]:
    """All threads except those that the event loop keeps for later work."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


def _open_files() -> int:
    process = psutil.Process()
    return int(process.num_handles() if hasattr(process, "num_handles") else process.num_fds())


def run_storm(bundle: Path, events: int, restarts: int = 0, *, processes: bool, seed: int = 0) -> Storm:
    """Run a Storm to its end; in virtual time if there are no processes."""

    async def run() -> Storm:
        if not processes:
            asyncio.get_running_loop().set_default_executor(Inline())
        storm = Storm(bundle, events, restarts, processes=processes, seed=seed)
        await storm.run()
        return storm

    with asyncio.Runner(loop_factory=None if processes else VirtualLoop) as runner:
        return runner.run(run())
