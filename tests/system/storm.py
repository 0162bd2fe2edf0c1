"""Thousands of faults at random under concurrent traffic: kills, deaths, hangs and failed calls, and what is left.

    python -m tests.system.storm --events 10000             no processes: workers on the event loop, in virtual time
    python -m tests.system.storm --events 2000 --processes  real worker processes, killed for real

Everything from the router down to the frames is the gateway's own; only the model behind the frames is not.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import random
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
from msgspec.structs import replace

from gateway.config import BreakerConfig, Config, LocalModel, ModelConfig
from gateway.engines.local.engine import LocalEngine
from gateway.engines.local.process import WorkerProcess
from gateway.errors import BreakerOpen, GatewayError, ModelNotReady, QueueFull
from gateway.generation import Finished, Generation, TokenIds
from gateway.lanes.lane import Lane
from gateway.lanes.router import Router
from gateway.sampling import Sampling
from gateway.worker.frames import FromWorker, ToWorker
from tests.support.tiny import build_tiny
from tests.support.virtual_time import VirtualLoop
from tests.system import storm_worker
from tests.system.storm_worker import DIE, HANG, RAISE, Died, Hung, Loop

CLIENTS = 16
VICTIMS = ("first", "second")
CALM = "calm"  # the model that nothing happens to
STEP_S = 0.01
PAUSE_S = 0.1  # at most before a worker is started again
REFUSED_S = 0.5  # how long a client that was refused does something else
NEVER_S = 300.0  # no request takes so long unless it is lost


class Channel:
    """What stands for a worker process without one: the methods of WorkerProcess, the loop in a task."""

    def __init__(self, on_frame: Callable[[FromWorker], None]) -> None:
        self._loop = Loop(on_frame)
        self._task: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()
        self.pid = None
        self.gone = asyncio.Event()
        self.exit = ""
        self._on_frame = on_frame

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def send(self, frame: ToWorker) -> None:
        self._loop.hear(frame)
        self._heard.set()

    def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.gone.set()

    async def stop(self, grace_s: float) -> None:
        self.kill()
        if self._task is not None:
            await asyncio.wait([self._task])
        self.exit = "no process"

    async def _run(self) -> None:
        self._on_frame(storm_worker.ready())
        try:
            while True:
                await self._heard.wait()
                await asyncio.sleep(STEP_S)
                self._loop.turn()
                if self._loop.is_idle:
                    self._heard.clear()
        except Died:
            self.gone.set()
        except Hung:
            await asyncio.Event().wait()


class StormEngine(LocalEngine):
    """The local engine over workers without a model."""

    def __init__(self, name: str, model: ModelConfig, folder: Path, processes: bool) -> None:
        clock = asyncio.get_running_loop().time
        super().__init__(name, model, folder, clock=clock)
        self._processes = processes

    def _worker(self, on_frame: Callable[[FromWorker], None]) -> Any:
        if not self._processes:
            return Channel(on_frame)
        return WorkerProcess(self._name, None, on_frame, storm_worker.main)  # type: ignore[arg-type]

    def kill_worker(self) -> None:
        """As the system does when memory is short: no word before it."""
        process = self._supervisor._process
        if process is not None and self.status.state == "ready":
            psutil.Process(process.pid).kill() if process.pid else process.kill()


async def _short_pause(seconds: float) -> None:
    await asyncio.sleep(min(seconds, PAUSE_S))


class Storm:
    """One run; `counts` has how every request ended, `failures` what must not be."""

    def __init__(self, bundle: Path, events: int, *, processes: bool, seed: int = 0) -> None:
        self._events, self._processes = events, processes
        self._chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.kills = 0
        self.memory_mb: list[float] = []
        calm = LocalModel(path=str(bundle), queue=CLIENTS)  # a busy machine may keep its worker waiting for seconds
        victim = replace(calm, watchdog_s=1.0 if processes else 5.0)
        breaker = BreakerConfig(enabled=not processes, latency_ms=2000, open_s=0.5)
        self._config = Config(models={**dict.fromkeys(VICTIMS, victim), CALM: calm}, breaker=breaker)
        clock = asyncio.get_running_loop().time
        self._engines = {
            name: StormEngine(name, model, bundle.parent, processes) for name, model in self._config.models.items()
        }
        lanes = {
            name: Lane(name, model, self._engines[name], breaker, clock=clock, sleep=_short_pause)
            for name, model in self._config.models.items()
        }
        self._router = Router(self._config, lanes, clock)

    @property
    def events(self) -> int:
        """Failed calls that a request heard of, and ends of workers."""
        return self.counts["the call failed"] + self.restarts

    @property
    def restarts(self) -> int:
        return sum(self._engines[name].status.restarts for name in VICTIMS)

    async def run(self) -> None:
        """Raises AssertionError for the first thing that is left over."""
        threads, files, children = _threads(), _open_files(), multiprocessing.active_children()
        await self._router.start()
        await self._router.tried()
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())
            group.create_task(self._killer())
            group.create_task(self._watch_memory())
        await self._router.aclose()
        assert not self.failures, self.failures[:5]
        assert not set(multiprocessing.active_children()) - set(children)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert _threads() == threads, _threads()
        assert _open_files() <= files + 1, (files, _open_files())

    async def _client(self) -> None:
        while self.events < self._events:
            model = self._chance.choice((*VICTIMS, *VICTIMS, CALM))
            await self._ask(model)

    async def _ask(self, model: str) -> None:
        """One request, from whom it is accepted to the one way in which it ends."""
        stay_s = self._chance.choice((NEVER_S, NEVER_S, NEVER_S, self._chance.random()))
        try:
            async with asyncio.timeout(stay_s):
                ending = await self._answer(model)
        except TimeoutError:
            ending = "its client left" if stay_s < NEVER_S else "it never ended"
        self.counts[ending] += 1
        if ending == "it never ended" or (model == CALM and ending not in ("answered", "its client left")):
            self.failures.append(f"{model}: {ending}")

    async def _answer(self, model: str) -> str:
        try:
            opened = await self._router.open(self._request(model))
        except (BreakerOpen, QueueFull, ModelNotReady) as error:
            await asyncio.sleep(REFUSED_S)
            return f"refused: {error.code}"
        except GatewayError as error:
            return self._failed(error)
        async with aclosing(opened) as events:
            try:
                finishes = [event async for event in events if isinstance(event, Finished)]
            except GatewayError as error:
                ending = self._failed(error)
            else:
                ending = "answered" if len(finishes) == 1 else f"{len(finishes)} ends"
            async for event in events:
                self.failures.append(f"{model}: {event} after its end")
        return ending

    def _failed(self, error: GatewayError) -> str:
        if error.code not in ("engine_failed", "model_not_ready"):
            self.failures.append(f"{error.code}: {error}")
        return "the call failed" if error.message == storm_worker.SAID else "its worker ended"

    def _request(self, model: str) -> Generation:
        chance, tokens = self._chance, self._chance.randint(1, 12)
        fault = 40
        if model != CALM and chance.random() < 0.25:
            (fault,) = chance.choices((RAISE, DIE, HANG), (90, 5, 5) if self._processes else (60, 20, 20))
        prompt = TokenIds((40, 41, chance.randrange(tokens), fault))
        return Generation(id="r", model=model, prompt=prompt, sampling=Sampling(temperature=0.0), max_tokens=tokens)

    async def _killer(self) -> None:
        while self.events < self._events:
            await asyncio.sleep(self._chance.uniform(0.2, 2.0))
            self._engines[self._chance.choice(VICTIMS)].kill_worker()
            self.kills += 1

    async def _watch_memory(self) -> None:
        for tenth in range(1, 11):
            while self.events < self._events * tenth / 10:  # noqa: ASYNC110 (what happens is far away)
                await asyncio.sleep(0.1)
            gc.collect()
            self.memory_mb.append(psutil.Process().memory_info().rss / 2**20)


def _threads() -> list[str]:
    """All but the event loop's own, which it keeps for the next piece of work."""
    return [thread.name for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]


def _open_files() -> int:
    process = psutil.Process()
    return int(process.num_handles() if hasattr(process, "num_handles") else process.num_fds())


class _Inline(ThreadPoolExecutor):
    """Virtual time does not wait for threads: what is for a thread is done at once."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*args, **options))
        except Exception as error:
            done.set_exception(error)
        return done


def run_storm(bundle: Path, events: int, *, processes: bool, seed: int = 0) -> Storm:
    """Run one to its end, in virtual time where there are no processes."""

    async def run() -> Storm:
        if not processes:
            asyncio.get_running_loop().set_default_executor(_Inline())
        storm = Storm(bundle, events, processes=processes, seed=seed)
        await storm.run()
        return storm

    with asyncio.Runner(loop_factory=None if processes else VirtualLoop) as runner:
        return runner.run(run())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storm = run_storm(build_tiny(Path(folder)), options.events, processes=options.processes, seed=options.seed)
    requests, restarts = storm.counts.total(), storm.restarts
    print(f"{storm.events} events, {restarts} of them ends of workers; {requests} requests, each with one ending:")
    for ending, count in storm.counts.most_common():
        print(f"  {count:6} {ending}")
    print("nothing is left over; memory at each tenth, MiB: " + " ".join(f"{mb:.1f}" for mb in storm.memory_mb))


if __name__ == "__main__":
    main()
