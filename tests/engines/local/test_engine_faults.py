"""LocalEngine: cancelled requests, and workers that hang, die or fail. Real worker processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from gateway.bundles.hashes import HASHES_FILE
from gateway.engines.local.engine import LocalEngine
from gateway.engines.local.prompts import Prompts
from gateway.errors import (
    BundleError,
    EngineFailed,
    GatewayError,
    ModelNotReady,
)
from gateway.generation import (
    Meter,
    TokenIds,
)
from gateway.worker.entry import local_worker
from gateway.worker.frames import Cancel
from tests.support import workers
from tests.support.engines import event_stream, events_of, kept_loaded
from tests.support.local_engine import (
    advance_until,
    chat,
    make,
    request,
    text_of,
    until,
    until_ready,
    until_text,
    usage,
)
from tests.support.manual_clock import ManualClock

WATCHDOG_S = 0.2  # of the manual clock
HANGING = request(TokenIds((40, workers.HANG)))

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest_asyncio.fixture(loop_scope="module")
async def faulty(clock: ManualClock, tiny: Path) -> AsyncIterator[LocalEngine]:
    engine = make(tiny, workers.faulty, clock, watchdog_s=WATCHDOG_S)
    async with kept_loaded(engine):
        yield engine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def slow(long_tiny: Path) -> AsyncIterator[LocalEngine]:
    """An engine whose answers end later than any test: 20 ms for each token."""
    engine = make(long_tiny, workers.takes_20_ms_per_step)
    async with kept_loaded(engine):
        yield engine


class Unreadable:
    """A parser with a bug."""

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


async def until_hung(engine: LocalEngine, meter: Meter) -> None:
    """Wait until the call after the third token runs, and the watchdog has seen it."""
    await until(lambda: meter.completion_tokens == 3)
    monitor = engine._supervisor._monitor
    assert monitor is not None
    await until(lambda: monitor.look()[0] == "in_call")


async def test_closed_stream_cancels_at_worker(slow: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    send = slow._supervisor.send
    monkeypatch.setattr(slow._supervisor, "send", lambda frame: (sent.append(frame), send(frame)))
    for _ in range(20):
        meter = Meter()
        async with aclosing(event_stream(slow, request(max_tokens=8000), meter)) as events:
            await until_text(events)
        assert isinstance(sent[-1], Cancel) and sent[-1].id == sent[-2].id
        assert meter.call_since is None
    assert slow._running == {}
    assert len(text_of(await events_of(slow, request(max_tokens=2)))) > 0


async def test_request_cancelled_before_submit_leaves_nothing(slow: LocalEngine) -> None:
    task = asyncio.create_task(events_of(slow, request(chat("hello " * 50))))
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert slow._running == {}


async def test_killed_worker_ends_streams_and_is_restarted(long_tiny: Path) -> None:
    engine = make(long_tiny, workers.takes_20_ms_per_step)
    restart = asyncio.Event()

    async def pause(seconds: float) -> None:
        await restart.wait()

    async with kept_loaded(engine, pause):
        pid = engine._supervisor._process.pid
        streams = [event_stream(engine, request(max_tokens=8000)) for _ in range(3)]
        await asyncio.gather(*map(until_text, streams))
        psutil.Process(pid).kill()
        for stream in streams:
            with pytest.raises(EngineFailed, match="worker died"):
                async for _ in stream:
                    pass
        with pytest.raises(ModelNotReady, match="restarting"):
            await events_of(engine, request())
        restart.set()
        await until_ready(engine)
        assert engine.status.restarts == 1
        assert engine._supervisor._process.pid != pid
        assert usage(await events_of(engine, request())).completion_tokens == 24
    assert engine.status.state == "closed"


async def test_watchdog_ends_hung_call_and_all_requests(faulty: LocalEngine, clock: ManualClock) -> None:
    meter = Meter()
    hung = asyncio.create_task(events_of(faulty, HANGING, meter))
    other = asyncio.create_task(events_of(faulty, request(max_tokens=400)))
    await until(lambda: len(faulty._running) == 2)
    await advance_until(clock, WATCHDOG_S, lambda: faulty.status.state != "ready")
    for result in await asyncio.gather(hung, other, return_exceptions=True):
        assert isinstance(result, EngineFailed)
        assert "did not come back within 0.2 s" in result.message
    assert meter.call_since is None
    await until_ready(faulty)
    assert usage(await events_of(faulty, request())).completion_tokens == 24


async def test_new_request_does_not_reset_watchdog_of_hung_call(faulty: LocalEngine, clock: ManualClock) -> None:
    meter = Meter(clock=clock)
    async with aclosing(event_stream(faulty, HANGING, meter)) as events:
        await until_text(events)
        await until_hung(faulty, meter)
        clock.now += 0.7 * WATCHDOG_S
    task = asyncio.create_task(events_of(faulty, request()))
    await until(lambda: bool(faulty._running))
    clock.now += 0.4 * WATCHDOG_S
    with pytest.raises(EngineFailed, match="did not come back"):
        await task


async def test_cancelled_request_does_not_shorten_next_watchdog(faulty: LocalEngine, clock: ManualClock) -> None:
    for _ in range(3):
        async with aclosing(event_stream(faulty, request(max_tokens=400))) as events:
            await until_text(events)
        clock.now += 0.6 * WATCHDOG_S
    assert usage(await events_of(faulty, request())).completion_tokens == 24
    assert faulty.status.restarts == 0


async def test_running_call_is_in_meter(faulty: LocalEngine, clock: ManualClock) -> None:
    meter = Meter(clock=clock)
    async with aclosing(event_stream(faulty, HANGING, meter)) as events:
        await until_text(events)
        await until_hung(faulty, meter)
        assert meter.call_since == clock.now
        clock.now += 0.5 * WATCHDOG_S
        assert meter.device_s_at(clock.now) == pytest.approx(meter.device_s + 0.5 * WATCHDOG_S)


async def test_device_call_exception_fails_only_its_request(faulty: LocalEngine) -> None:
    with pytest.raises(EngineFailed):
        await events_of(faulty, request(TokenIds((40, workers.RAISE))))
    assert usage(await events_of(faulty, request())).completion_tokens == 24
    assert faulty.status.restarts == 0


async def test_answer_that_cannot_be_read_fails_its_request_only(
    slow: LocalEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A parser of the answer raises in the callback of a frame: the worker stops, and only this request fails."""
    sent: list[Any] = []
    send, prompts = slow._supervisor.send, slow._ready_prompts()
    monkeypatch.setattr(slow._supervisor, "send", lambda frame: (sent.append(frame), send(frame)))
    other = event_stream(slow, request(max_tokens=8000))
    await until_text(other)
    parsers = type(prompts).parsers
    monkeypatch.setattr(type(prompts), "parsers", lambda *args: [Unreadable() for _ in parsers(*args)])
    with pytest.raises(GatewayError, match="could not be read") as raised:
        await events_of(slow, request(max_tokens=8000))
    assert type(raised.value) is GatewayError
    assert isinstance(sent[-1], Cancel) and sent[-1].id == sent[-2].id
    assert "Traceback" in caplog.text
    await until_text(other)
    await other.aclose()
    assert slow._running == {}


async def test_each_request_ends_once_under_kills_and_cancels(tiny: Path) -> None:
    before = set(multiprocessing.active_children())  # workers of the other fixtures
    engine = make(tiny, local_worker)
    chance = random.Random(0)
    endings: Counter[str] = Counter()

    async def client() -> None:
        patience_s = chance.choice([0.0, 0.01, 0.1, 300.0])
        try:
            async with asyncio.timeout(patience_s):
                events = await events_of(engine, request(max_tokens=chance.randint(1, 100), n=chance.randint(1, 2)))
            endings[type(events[-1]).__name__] += 1
        except (EngineFailed, ModelNotReady, TimeoutError) as error:
            endings[type(error).__name__] += 1

    async with kept_loaded(engine, sleep=lambda seconds: asyncio.sleep(0)):
        async with asyncio.TaskGroup() as clients:
            for i in range(300):
                clients.create_task(client())
                await asyncio.sleep(0.01)
                process = engine._supervisor._process
                if i % 75 == 50 and engine.status.state == "ready" and process is not None and process.pid is not None:
                    psutil.Process(process.pid).kill()
        assert endings.total() == 300
        failed = endings["EngineFailed"] + endings["DeviceFailed"]  # outside of a device call, or in one
        assert endings["Finished"] > 0 and endings["TimeoutError"] > 0 and failed > 0
        assert engine._running == {}
        assert engine.status.restarts > 0
        await until_ready(engine)
        assert usage(await events_of(engine, request())).completion_tokens == 24
    assert set(multiprocessing.active_children()) - before == set()


async def test_closed_engine_ends_requests_and_leaves_nothing(long_tiny: Path) -> None:
    before = set(multiprocessing.active_children())
    engine = make(long_tiny, workers.takes_20_ms_per_step)
    await engine.start()
    events = event_stream(engine, request(max_tokens=8000))
    await until_text(events)
    await engine.aclose()
    with pytest.raises(EngineFailed, match="closed"):
        async for _ in events:
            pass
    with pytest.raises(ModelNotReady):
        await events_of(engine, request())
    await engine.aclose()
    assert set(multiprocessing.active_children()) - before == set()


async def test_tokenizer_that_fails_after_the_worker_has_loaded_leaves_no_worker(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Path(shutil.copytree(tiny, tmp_path / "m"))
    (bundle / HASHES_FILE).unlink()  # so that nothing but the prompt process finds the fault
    (bundle / "tokenizer.json").write_text("{", encoding="utf-8")
    before, engine, start = set(multiprocessing.active_children()), make(bundle), Prompts.start

    async def start_late(prompts: Prompts) -> None:
        await until(lambda: engine._supervisor.ready is not None)
        await start(prompts)

    try:
        with monkeypatch.context() as patch, pytest.raises(BundleError, match=r"tokenizer\.json"):
            patch.setattr(Prompts, "start", start_late)
            await engine.start()
        assert set(multiprocessing.active_children()) == before
        assert engine.status.state == "failed" and "tokenizer.json" in engine.status.detail
        shutil.copy(tiny / "tokenizer.json", bundle)
        await engine.start()
        assert len(set(multiprocessing.active_children()) - before) == 1
        assert (engine.status.state, engine.status.restarts) == ("ready", 0)
        assert usage(await events_of(engine, request(max_tokens=2))).completion_tokens == 2
    finally:
        await engine.aclose()
    assert set(multiprocessing.active_children()) == before


async def test_missing_bundle_fails_start(tmp_path: Path) -> None:
    engine = make(tmp_path / "nothing")
    with pytest.raises(BundleError, match="nothing"):
        await engine.start()
    with pytest.raises(ModelNotReady):
        await events_of(engine, request())
    await engine.aclose()
