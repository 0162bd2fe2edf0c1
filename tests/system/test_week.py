"""A week of the gateway in virtual time: log files, usage history and memory stay bounded, and no number is lost.

Real: router, lanes, breaker, fallback, log with rotation, usage history, the last answers, refusal log, metrics.
Not real: the device (a script), HTTP, and the clocks.
"""

from __future__ import annotations

import asyncio
import gc
import io
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from gateway.config.tables import BreakerConfig, Config, ScriptedModel
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import GatewayError, Unauthorized
from gateway.generation import Generation, Text
from gateway.lanes.lane import Lane
from gateway.lanes.router import Router
from gateway.monitoring import logs
from gateway.monitoring.log_file import LogFile
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.observers import AnswerRecord, Observers
from gateway.monitoring.recent import MAX_ANSWERS, MAX_LINES, LogRing, RecentAnswers
from gateway.monitoring.refusals import RefusalLog
from gateway.monitoring.usage.history import UsageHistory
from gateway.monitoring.usage.report import first_hour, report_of
from gateway.monitoring.usage.store import UsageStore
from gateway.state.sqlite import SqliteDatabase
from tests.support.server import script_of
from tests.support.virtual_time import VirtualLoop, now

MIDNIGHT = 1_796_083_200.0  # 2026-12-01 in UTC
HOUR, DAY = 3600, 24 * 3600
DAYS, KEPT_DAYS = 7, 3
KEYS = ("anna", "ben", '日本 "; DROP TABLE usage; --', "")
BURST = 8  # requests at once; `big` runs two and has two in its queue
BURSTS = 3  # an hour
LOG_BYTES, LOG_FILES = 40_000, 3


class Kept(NamedTuple):
    """What must not grow."""

    blocks: int  # allocated objects of any kind
    objects: int  # that the garbage collector follows
    metrics_lines: int
    database: int  # bytes, with SQLite's other files
    log: int  # bytes of all files


class Week:
    """The parts of a gateway, connected as gateway/app.py and commands/serve.py do."""

    def __init__(self, folder: Path, log_file: LogFile) -> None:
        self.folder = folder
        self.log_file = log_file
        self.sent: Counter[int] = Counter()  # requests by the day when they ended
        self.errors: Counter[str] = Counter()
        self.kept: dict[int, Kept] = {}
        self.metrics, self.recent, self.ring = Metrics(), RecentAnswers(), LogRing()
        self.usage = UsageHistory(UsageStore(SqliteDatabase(folder / "state.sqlite"), KEPT_DAYS))
        self.refusals = RefusalLog(self.metrics, now)
        observers = Observers()
        for observer in (self.usage.add, self.recent.add, self._count):
            observers.add(observer)
        slow = [0.2] * 20 + [9.0] * 5  # the device is slow from time to time: the breaker opens
        fault = {
            "requests": [*range(5, 700, 15)],
            "after": 1,
            "error": "EngineFailed",
            "message": "the device fell over",
        }
        breaker = BreakerConfig(latency_ms=1000, min_calls=3, window=6, open_s=10, probe_itself=False)
        models = {
            "big": ScriptedModel(
                max_sequences=2, queue=2, fallback="small", script=script_of(replies=["a b c"], ttft_s=slow)
            ),
            "alone": ScriptedModel(
                max_sequences=2, queue=2, script=script_of(replies=["a b"], ttft_s=slow, faults=[fault])
            ),
            "small": ScriptedModel(script=script_of(replies=["a b"], ttft_s=0.1)),
        }
        config = Config(models=models, breaker=breaker)
        lanes = {
            name: Lane(name, model, ScriptedEngine(name, model, clock=now), breaker, clock=now, metrics=self.metrics)
            for name, model in models.items()
        }
        self.router = Router(config, lanes, now, observers)

    def _count(self, record: AnswerRecord) -> None:
        self.sent[int(record.at // DAY)] += 1
        self.errors[record.ending] += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        logging.getLogger().addHandler(self.ring)
        await self.router.start()
        await self.router.tried()
        writer = asyncio.create_task(self._write())
        try:
            yield
        finally:
            writer.cancel()
            await self.router.aclose()
            logging.getLogger().removeHandler(self.ring)
            self.usage.flush()

    async def _write(self) -> None:
        """What the thread of the history does, by the clock of the week."""
        while True:
            await asyncio.sleep(30)
            self.usage.flush()

    async def hour(self, hour: int) -> None:
        for burst in range(BURSTS):
            number = (hour * BURSTS + burst) * BURST
            name = ("big", "alone", "small")[burst]
            await asyncio.gather(*(self.request(name, number + index) for index in range(BURST)))
            await asyncio.sleep(40)
        self.refusals.refused("GET", "/v1/models", ("10.0.0.9", 1), Unauthorized("Incorrect API key provided."))
        await asyncio.sleep((hour + 1) * HOUR - now())

    async def request(self, name: str, number: int) -> None:
        generation = Generation(
            id=f"req-{number}", model=name, prompt=Text("one two three"), owner=KEYS[number % 4], endpoint="/v1/x"
        )
        try:
            answer = await self.router.open(generation)
        except GatewayError:
            return
        try:
            async for _ in answer:
                if number % 50 == 0:  # a client that leaves
                    break
        except GatewayError:
            pass
        finally:
            await answer.aclose()

    def measure(self, day: int) -> None:
        self.usage.flush()
        assert self.log_file.drain(60)
        gc.collect()
        self.kept[day] = Kept(
            blocks=sys.getallocatedblocks(),
            objects=len(gc.get_objects()),
            metrics_lines=self.metrics.render().count(b"\n"),
            database=sum(file.stat().st_size for file in self.folder.glob("state.sqlite*")),
            log=sum(file.stat().st_size for file in self.folder.glob("gateway*.log")),
        )


@pytest.fixture
def week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Week]:
    """The gateway after a week."""
    loggers = [logging.getLogger(), logging.getLogger("gateway")]
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    log_file = LogFile(tmp_path / "gateway.log", LOG_BYTES, LOG_FILES, lambda lost: b"LOST %d\n" % lost)
    logs.setup("info", io.StringIO(), file=log_file)
    loggers[0].handlers[:] = loggers[0].handlers[-1:]  # that of the file: pytest's keep every record
    try:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            monkeypatch.setattr(time, "time", lambda: MIDNIGHT + runner.get_loop().time())
            yield runner.run(_lived(tmp_path, log_file))
    finally:
        log_file.close(60)
        logging.captureWarnings(False)
        for logger, (handlers, level) in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
            logger.setLevel(level)


async def _lived(folder: Path, log_file: LogFile) -> Week:
    week = Week(folder, log_file)
    async with week.running():
        for hour in range(24 * DAYS):
            await week.hour(hour)
            if hour % 24 == 23:
                week.measure(hour // 24 + 1)
    return week


def test_a_week_is_bounded_and_loses_no_number(week: Week, tmp_path: Path) -> None:
    total = sum(week.sent.values())
    assert total == 24 * DAYS * BURSTS * BURST
    failures = ("latency_breaker_open", "rate_limit_exceeded", "engine_failed")
    for ending in ("stop", "cancelled", *failures):
        assert week.errors[ending] > 20, (ending, week.errors)

    # memory: nothing is kept for each of the requests of days 3 to 7
    early, late = week.kept[2], week.kept[DAYS]
    requests = total * (DAYS - 2) // DAYS
    assert late.blocks - early.blocks < requests // 4, (early, late)
    assert late.objects - early.objects < requests // 20, (early, late)
    assert late.metrics_lines == early.metrics_lines
    assert len(week.recent.after(0)) == MAX_ANSWERS and len(week.ring.after(0)) == MAX_LINES

    # the log: the newest lines, in files of bounded size, and no line is lost
    files = sorted(tmp_path.glob("gateway*.log"))
    assert [file.name for file in files] == ["gateway.1.log", "gateway.2.log", "gateway.log"]
    assert all(file.stat().st_size <= LOG_BYTES for file in files)
    text = (tmp_path / "gateway.log").read_text(encoding="utf-8")
    assert "LOST" not in text
    dates = re.findall(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\S*) ", text, re.MULTILINE)
    assert dates == sorted(dates) and len(dates) == text.count("\n")

    # the usage history: the last days, with the number of each
    assert week.kept[DAYS].database <= 1.1 * week.kept[KEPT_DAYS].database
    days: Counter[int] = Counter()
    rows = week.usage.rows(0)
    for cell, counts in rows.items():
        days[cell.hour // 24] += counts["requests"]
    first = int(MIDNIGHT // DAY)
    assert days == {day: week.sent[day] for day in range(first + DAYS - KEPT_DAYS, first + DAYS)}
    end = MIDNIGHT + DAYS * DAY - 1
    report = report_of({c: n for c, n in rows.items() if c.hour >= first_hour(2, end)}, 2, end)
    assert {row.name for row in report.by_key} == set(KEYS)
    assert {row.name for row in report.by_model} == {"big", "alone", "small"}
    assert report.total.refused > 20 and report.total.ttft_p95_ms is not None
