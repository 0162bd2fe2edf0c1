"""Real worker processes, spoken to as the gateway does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.worker.frames import (
    Cancel,
    Ended,
    Failed,
    FromWorker,
    Loading,
    Ready,
    Shutdown,
    Submit,
    Tokens,
    ToWorker,
    WorkerSpec,
    decode_from_worker,
    encode,
)
from gateway.worker.main import worker_main
from tests.support.token_loop_fixtures import GREEDY

PATIENCE_S = 60


class Worker:
    def __init__(self, spec: WorkerSpec) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=worker_main, args=(theirs, spec), daemon=True)
        self.process.start()
        theirs.close()

    def say(self, frame: ToWorker) -> None:
        self.connection.send_bytes(encode(frame))

    def hear(self) -> FromWorker:
        assert self.connection.poll(PATIENCE_S), "the worker is silent"
        return decode_from_worker(self.connection.recv_bytes())

    def hear_until(self, *kinds: type) -> list[Any]:
        frames: list[Any] = [self.hear()]
        while not isinstance(frames[-1], kinds):
            frames.append(self.hear())
        return frames

    def exit_code(self) -> int | None:
        self.process.join(PATIENCE_S)
        return self.process.exitcode


@pytest.fixture
def start(tiny: Path) -> Iterator[Callable[..., Worker]]:
    workers = []

    def start(**options: Any) -> Worker:
        workers.append(Worker(WorkerSpec(**{"bundle": str(tiny), "threads": 1} | options)))
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()


def test_loads_answers_and_leaves_when_told(start: Callable[..., Worker]) -> None:
    worker = start(context_length=128)
    *loading, ready = worker.hear_until(Ready, Failed)
    assert loading and all(isinstance(frame, Loading) for frame in loading)
    assert (ready.vocab_size, ready.context_length, ready.device) == (384, 128, "cpu")
    assert ready.load_s > 0 and ready.warm_up_s > 0 and ready.peak_bytes > 10e6
    worker.say(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=5))
    frames = worker.hear_until(Ended, Failed)
    assert frames[-1] == Ended(1, "length")
    assert sum(len(frame.ids) for frame in frames if isinstance(frame, Tokens)) == 5
    worker.say(Shutdown())
    assert worker.exit_code() == 0


def test_a_context_as_short_as_the_warm_up_loads(start: Callable[..., Worker]) -> None:
    assert start(context_length=8).hear_until(Ready, Failed)[-1].context_length == 8


def test_a_cancel_overtakes_the_answer(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.hear_until(Ready)
    worker.say(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=500))
    worker.hear_until(Tokens)
    worker.say(Cancel(1))
    worker.say(Submit(id=2, ids=[5, 6, 7], sampling=GREEDY, max_tokens=1))
    frames = worker.hear_until(Ended)
    assert frames[-1].id == 2
    assert len([frame for frame in frames if frame.id == 1]) < 400


@pytest.mark.parametrize("missing", [True, False])
def test_a_load_that_fails_is_said(start: Callable[..., Worker], tmp_path: Path, missing: bool) -> None:
    folder = tmp_path / "broken"
    if not missing:
        folder.mkdir()
        (folder / "genai_config.json").write_text("{}", encoding="utf-8")
    worker = start(bundle=str(folder))
    failed = worker.hear_until(Ready, Failed)[-1]
    assert (failed.id, failed.kind) == (None, "BundleError")
    assert "broken" in failed.message and str(tmp_path) not in failed.message
    assert worker.exit_code() == 0


def test_leaves_when_the_gateway_is_gone(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.hear_until(Ready)
    worker.say(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=500))
    worker.connection.close()
    assert worker.exit_code() in (0, 1)


def test_leaves_when_the_gateway_is_gone_while_it_is_idle(start: Callable[..., Worker]) -> None:
    worker = start()
    worker.hear_until(Ready)
    worker.connection.close()
    assert worker.exit_code() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_the_gateways_business(start: Callable[..., Worker], number: int) -> None:
    worker = start()
    worker.hear_until(Ready)
    assert worker.process.pid
    os.kill(worker.process.pid, number)
    worker.say(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=2))
    assert isinstance(worker.hear_until(Ended, Failed)[-1], Ended)


def test_idle_costs_no_cpu(start: Callable[..., Worker]) -> None:
    worker = start(threads=2)
    worker.hear_until(Ready)
    worker.say(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=20))
    worker.hear_until(Ended)
    process = psutil.Process(worker.process.pid)
    time.sleep(0.2)
    before = process.cpu_times()
    time.sleep(1)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system <= 0.01
