"""Supervisor and WorkerProcess: workers that die, hang, refuse to load or send invalid frames. Real processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any, cast

import pytest

from gateway.engines.base import Engine, EngineStatus
from gateway.engines.local.process import Entry, WorkerProcess, describe_exit
from gateway.engines.local.supervisor import Supervisor, _advice
from gateway.errors import BundleError, DeviceFailed, EngineFailed, GatewayError
from gateway.lanes.memory.loader import Loader
from gateway.sampling import Sampling
from gateway.worker.frames import FromWorker, Shutdown, Submit, WorkerSpec
from tests.support import workers
from tests.support.manual_clock import ManualClock

SPEC = WorkerSpec(bundle="")


class Supervised:
    """A supervisor with what it reports, and a loader whose pauses are recorded and take no time.

    Args:
        entry: what runs in the next worker process.
        max_pauses: the loader stops after this number of pauses.
    """

    def __init__(
        self, entry: Entry, *, load_timeout_s: float = 60, watchdog_s: float = 60, max_pauses: int = 3
    ) -> None:
        self.entry, self.max_pauses = entry, max_pauses
        self.clock = ManualClock()
        self.processes: list[WorkerProcess] = []
        self.errors: list[str] = []
        self.kinds: list[type[GatewayError]] = []
        self.looks = 0  # at the clock
        self.is_busy = False
        self.frames: list[FromWorker] = []
        self.pauses: list[float] = []
        self.paused_enough = asyncio.Event()
        self.supervisor = Supervisor(
            "model",
            self._spawn,
            load_timeout_s=load_timeout_s,
            watchdog_s=watchdog_s,
            on_frame=self._record,
            on_lost=self._lose,
            is_busy=lambda: self.is_busy,
            clock=self._now,
        )
        self._loading: asyncio.Task[None] | None = None

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(state=self.supervisor.state, detail=self.supervisor.detail)

    async def start(self) -> None:
        await self.supervisor.start()

    async def lost(self) -> str:
        return await self.supervisor.lost()

    async def load(self) -> Loader:
        """Start a loader; return after its first attempt."""
        loader = Loader("model", cast(Engine, self), time.monotonic, self._pause)
        self._loading = asyncio.create_task(loader.run())
        await loader.tried.wait()
        return loader

    async def aclose(self) -> None:
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        await self.supervisor.aclose()

    def _spawn(self, on_frame: Callable[[FromWorker], None]) -> WorkerProcess:
        self.processes.append(WorkerProcess("model", SPEC, on_frame, self.entry))
        return self.processes[-1]

    def _now(self) -> float:
        self.looks += 1
        return self.clock()

    def _record(self, frame: FromWorker) -> None:
        self.frames.append(frame)

    async def until_frame_of(self, id: int) -> None:
        async with asyncio.timeout(60):
            while not any(getattr(frame, "id", None) == id for frame in self.frames):  # noqa: ASYNC110 (in a process)
                await asyncio.sleep(0.01)

    def _lose(self, error: GatewayError) -> int:
        self.errors.append(error.message)
        self.kinds.append(type(error))
        return 1

    async def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) > self.max_pauses:
            self.paused_enough.set()
            await asyncio.Event().wait()


_others: set[BaseProcess] = set()  # workers of other modules


@pytest.fixture(scope="module", autouse=True)
def others() -> None:
    _others.update(multiprocessing.active_children())


def assert_nothing_is_left() -> None:
    assert set(multiprocessing.active_children()) - _others == set()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("model ")]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_dying_worker_is_restarted_with_exponential_backoff(
    caplog: pytest.LogCaptureFixture,
) -> None:
    supervised = Supervised(workers.dies_when_ready)
    await supervised.load()
    await supervised.paused_enough.wait()
    assert supervised.pauses == [0.5, 1.0, 2.0, 4.0]
    assert supervised.supervisor.restarts == 3
    assert supervised.supervisor.state == "restarting"
    assert supervised.errors == ["The model 'model' failed: its worker died. Try again."] * 4
    assert "its worker died (exit code 3); 1 request in progress ended with an error" in caplog.text
    assert "npu-gateway doctor" in caplog.text
    await supervised.aclose()
    assert_nothing_is_left()


async def test_failing_restart_is_retried_without_end() -> None:
    supervised = Supervised(workers.dies_when_ready)
    loader = await supervised.load()
    supervised.entry = workers.dies_at_once
    await supervised.paused_enough.wait()
    assert supervised.pauses == [0.5, 1.0, 2.0, 4.0]
    assert len(supervised.errors) == 1
    assert loader.status.state == "restarting"
    assert loader.status.detail == "The worker of 'model' died while it loaded (exit code 3)."
    await supervised.aclose()
    assert_nothing_is_left()


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (workers.dies_at_once, EngineFailed, r"died while it loaded \(exit code 3\)"),
        (workers.refuses_bundle, BundleError, "made for another chip"),
        (workers.never_finishes_loading, EngineFailed, r"did not load in 0\.2 s"),
    ],
    ids=["dies", "refuses", "takes too long"],
)
async def test_failed_first_load_is_raised_and_can_be_repeated(
    entry: Entry, error: type[GatewayError], message: str
) -> None:
    supervised = Supervised(entry, load_timeout_s=0.2 if entry is workers.never_finishes_loading else 60)
    with pytest.raises(error, match=message):
        await supervised.supervisor.start()
    assert supervised.supervisor.state == "failed"
    assert_nothing_is_left()
    supervised.entry, supervised.supervisor._load_timeout_s = workers.serves_nothing, 60
    await supervised.supervisor.start()
    assert supervised.supervisor.state == "ready"
    await supervised.aclose()
    assert_nothing_is_left()


def submit(id: int) -> Submit:
    return Submit(id=id, ids=[1], sampling=Sampling(), max_tokens=1)


async def until_state(supervised: Supervised, state: str) -> None:
    """Wait until the worker shows that it is in `state`, and the supervisor has seen it."""
    async with asyncio.timeout(60):
        while supervised.processes[-1].activity.state != state:  # noqa: ASYNC110 (in a process)
            await asyncio.sleep(0.01)
    supervised.supervisor.call_s()


async def test_watchdog_ends_worker_that_hangs_in_a_device_call() -> None:
    supervised = Supervised(workers.hangs_in_call, watchdog_s=0.5)
    await supervised.supervisor.start()
    supervised.supervisor.send(submit(1))
    await until_state(supervised, "in_call")
    supervised.clock.now += 0.4
    assert supervised.supervisor.call_s() == pytest.approx(0.4)
    assert supervised.supervisor.state == "ready"
    supervised.clock.now += 0.2
    await supervised.lost()
    assert supervised.errors == [
        "The model 'model' failed: a device call did not come back within 0.5 s, so its worker was killed. Try again."
    ]
    assert supervised.kinds == [DeviceFailed]
    assert supervised.processes[0].exit != ""
    await supervised.aclose()
    assert_nothing_is_left()


async def test_waiting_worker_is_never_ended() -> None:
    """It waits for a request, or for the compiler of a client's grammar: nothing can hang."""
    supervised = Supervised(workers.serves_nothing, watchdog_s=0.5)
    await supervised.supervisor.start()
    supervised.is_busy = True  # it can begin to work without a frame
    for id in range(1, 4):
        supervised.supervisor.send(submit(id))
        supervised.clock.now += 1000.0
        looked_at = supervised.looks
        async with asyncio.timeout(60):
            while supervised.looks < looked_at + 5:  # noqa: ASYNC110 (the supervisor looks in real time)
                await asyncio.sleep(0.01)
    supervised.is_busy = False
    async with asyncio.timeout(60) as limit:
        while _timers() != [limit.when()]:  # after the last frame it looks once more, then no more
            await asyncio.to_thread(time.sleep, 0.01)
    assert supervised.supervisor.state == "ready"
    await supervised.aclose()
    assert_nothing_is_left()


def _timers() -> list[float]:
    """When the timers of the loop are due."""
    timers: list[asyncio.TimerHandle] = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return [each.when() for each in timers if not each.cancelled()]


async def test_worker_stuck_outside_device_calls_is_ended_without_blame(caplog: pytest.LogCaptureFixture) -> None:
    supervised = Supervised(workers.hangs_outside_call, watchdog_s=0.5)
    await supervised.supervisor.start()
    supervised.supervisor.send(submit(1))
    await until_state(supervised, "working")
    supervised.clock.now += 2.0
    assert supervised.supervisor.call_s() == 0
    assert supervised.supervisor.state == "ready"
    supervised.clock.now += 1.0
    reason = await supervised.lost()
    assert "its worker did nothing for 2.5 s outside a device call, so it was killed" in reason
    assert "this is a bug of npu-gateway" in reason
    assert supervised.kinds == [EngineFailed]
    await supervised.aclose()
    assert_nothing_is_left()


@pytest.mark.parametrize(
    ("entry", "kind"), [(workers.dies_in_call, DeviceFailed), (workers.dies_when_ready, EngineFailed)]
)
async def test_worker_that_dies_blames_the_device_only_in_a_device_call(entry: Entry, kind: type) -> None:
    supervised = Supervised(entry)
    await supervised.supervisor.start()
    await supervised.lost()
    assert supervised.kinds == [kind]
    await supervised.aclose()
    assert_nothing_is_left()


async def test_requests_that_fail_for_other_reasons_are_not_counted() -> None:
    supervised = Supervised(workers.fails_requests_with_bugs)
    await supervised.supervisor.start()
    for id in range(1, 11):
        supervised.supervisor.send(submit(id))
        await supervised.until_frame_of(id)
    assert supervised.supervisor.state == "ready" and supervised.supervisor._failures == 0
    await supervised.aclose()
    assert_nothing_is_left()


async def test_device_that_fails_three_requests_gets_new_worker() -> None:
    supervised = Supervised(workers.fails_requests)
    await supervised.supervisor.start()
    for ids in ((1, 2, 3), (4,), (5,)):  # the first three ran together: they count as one
        assert supervised.supervisor.state == "ready" and supervised.pauses == []
        for id in ids:
            supervised.supervisor.send(submit(id))
        await supervised.until_frame_of(ids[-1])
    reason = await supervised.lost()
    assert supervised.errors == [
        "The model 'model' failed: the device failed 3 requests in a row: QNN error 14001. Try again.",
    ]
    assert "`npu-gateway doctor` looks for the reason" in reason
    await supervised.aclose()
    assert_nothing_is_left()


@pytest.mark.parametrize(
    ("fault", "exit", "advice"),
    [
        ("its worker died", "signal SIGKILL", "something outside killed it"),
        ("its worker died", "status 0xC0000005", "npu-gateway doctor"),
        ("The machine has no memory left for this model.", "exit code 0", "context_length"),
    ],
)
def test_advice_matches_fault(fault: str, exit: str, advice: str) -> None:
    assert advice in _advice(fault, exit)


async def test_worker_with_invalid_frames_is_lost() -> None:
    supervised = Supervised(workers.sends_invalid_frame)
    await supervised.supervisor.start()
    await supervised.lost()
    assert len(supervised.errors) == 1
    await supervised.aclose()
    assert_nothing_is_left()


async def test_cancelled_start_leaves_nothing() -> None:
    for delay in (0, 0.01, 0.5):
        supervised = Supervised(workers.never_finishes_loading)
        task = asyncio.create_task(supervised.supervisor.start())
        await asyncio.sleep(delay)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await supervised.aclose()
        assert_nothing_is_left()


async def test_process_start_failure_is_engine_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", refuse)
    supervised = Supervised(workers.dies_at_once)
    with pytest.raises(EngineFailed, match="Cannot allocate memory"):
        await supervised.supervisor.start()
    assert_nothing_is_left()


@pytest.mark.parametrize("refused", ["reader", "writer"])
async def test_thread_start_failure_leaves_no_process_and_is_retried(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    supervised = Supervised(workers.dies_when_ready)
    loader = await supervised.load()
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == f"model {refused}":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    await supervised.paused_enough.wait()
    assert supervised.pauses == [0.5, 1.0, 2.0, 4.0]
    assert loader.status.detail == "No worker process could be started for 'model': can't start new thread."
    await supervised.aclose()
    assert_nothing_is_left()


async def test_frames_larger_than_pipe_do_not_block_event_loop() -> None:
    process = WorkerProcess("model", SPEC, lambda frame: None, workers.ignores_shutdown)
    await process.start()
    for _ in range(10):
        process.send(Submit(id=1, ids=list(range(100_000)), sampling=Sampling(), max_tokens=1))
    process.send(Shutdown())
    await asyncio.wait_for(process.stop(0), 60)
    assert_nothing_is_left()


def test_exit_code_is_described() -> None:
    assert describe_exit(3) == "exit code 3"
    if os.name == "posix":
        assert describe_exit(-9) == "signal SIGKILL"
        assert describe_exit(-99) == "signal 99"
