"""Real worker processes, over a real pipe."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil
import pytest

from gateway.activity import Activity
from gateway.generation import Grammar
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.frame_batcher import FrameBatcher
from gateway.worker.frames import Cancel, Ended, Failed, Loading, Ready, Shutdown, Submit, Tokens, WorkerSpec
from gateway.worker.grammar.compile_queue import GrammarQueue
from gateway.worker.grammar.compiler import GrammarCompiler
from gateway.worker.main import Inbox, serve, worker_main
from gateway.worker.token_loop import TokenLoop
from tests.support.token_loop_fixtures import GREEDY, MeteredDecoder, no_grammar
from tests.support.workers import PATIENCE_S, SpawnedWorker, takes_20_ms_per_step

Entry = Callable[[Connection, WorkerSpec, Activity], None]
Start = Callable[..., SpawnedWorker]


@pytest.fixture
def start(tiny: Path) -> Iterator[Start]:
    workers = []

    def start(entry: Entry = worker_main, **options: Any) -> SpawnedWorker:
        spec = WorkerSpec(**{"bundle": str(tiny), "threads": 1} | options)
        workers.append(SpawnedWorker(spec, entry))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def test_worker_loads_answers_and_ends_on_shutdown(start: Start) -> None:
    worker = start(context_length=128)
    *loading, ready = worker.receive_until(Ready, Failed)
    assert loading and all(isinstance(frame, Loading) for frame in loading)
    assert (ready.vocab_size, ready.context_length, ready.device) == (384, 128, "cpu")
    assert ready.load_s > 0 and ready.warm_up_s > 0 and ready.peak_bytes > 10e6
    worker.send(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=5))
    frames = worker.receive_until(Ended, Failed)
    assert frames[-1] == Ended(1, "length")
    assert sum(len(frame.ids) for frame in frames if isinstance(frame, Tokens)) == 5
    worker.send(Shutdown())
    assert worker.exit_code() == 0


def test_shutdown_ends_processes_that_read_grammars(start: Start) -> None:
    worker = start()
    worker.receive_until(Ready, Failed)
    slow = Grammar(kind="json_schema", source='{"type": "integer", "multipleOf": 1000003}', param="p")
    worker.send(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=5, grammar=slow))
    process, children, until = psutil.Process(worker.process.pid), list[psutil.Process](), time.monotonic() + PATIENCE_S
    while len(children) < 2:  # the second one compiles for 5 s of processor time
        assert time.monotonic() < until, "no process compiles the slow grammar"
        children = list(filter(_is_alive, process.children(recursive=True)))
        time.sleep(0.02)
    worker.send(Shutdown())
    assert worker.exit_code() == 0
    assert not list(filter(_is_alive, children))


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_context_shorter_than_warm_up_loads(start: Start) -> None:
    assert start(context_length=8).receive_until(Ready, Failed)[-1].context_length == 8


def test_cancel_ends_running_request(start: Start) -> None:
    """500 steps take at least 10 s, so the cancel arrives long before the end."""
    worker = start(takes_20_ms_per_step)
    worker.receive_until(Ready)
    worker.send(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=500))
    worker.receive_until(Tokens)
    worker.send(Cancel(1))
    worker.send(Submit(id=2, ids=[5, 6, 7], sampling=GREEDY, max_tokens=1))
    frames = worker.receive_until(Ended)
    assert frames[-1].id == 2


def test_serve_handles_cancel_before_next_device_call(tiny_decoder: CpuDecoder) -> None:
    inbox: Inbox = SimpleQueue()
    frames: list[Any] = []

    def during_call(kind: str) -> None:
        if len(decoder.calls) == 3:
            inbox.put(Cancel(1))
            inbox.put(Submit(id=2, ids=[5, 6, 7], sampling=GREEDY, max_tokens=1))
        if len(decoder.calls) == 4:
            inbox.put(Shutdown())

    decoder = MeteredDecoder(tiny_decoder, before_call=during_call)
    batcher = FrameBatcher(frames.append)
    loop = TokenLoop(decoder, [decoder.new_cache()], batcher.put, make_constraint=no_grammar)
    inbox.put(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=500))
    serve(loop, inbox, GrammarQueue(GrammarCompiler(Path("unused"), 0, ()), inbox.put), batcher, Activity())
    assert [frame.id for frame in frames if isinstance(frame, Tokens)] == [1, 1, 1, 1, 2]
    assert [frame for frame in frames if isinstance(frame, Ended)] == [Ended(2, "length")]


@pytest.mark.parametrize("missing", [True, False], ids=["no_folder", "bad_config"])
def test_failed_load_is_reported(start: Start, tmp_path: Path, missing: bool) -> None:
    folder = tmp_path / "broken"
    if not missing:
        folder.mkdir()
        (folder / "genai_config.json").write_text("{}", encoding="utf-8")
    worker = start(bundle=str(folder))
    failed = worker.receive_until(Ready, Failed)[-1]
    assert (failed.id, failed.kind) == (None, "BundleError")
    assert "broken" in failed.message and str(tmp_path) not in failed.message
    assert worker.exit_code() == 0


def test_worker_ends_when_pipe_closes_during_request(start: Start) -> None:
    worker = start()
    worker.receive_until(Ready)
    worker.send(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=500))
    worker.connection.close()
    assert worker.exit_code() in (0, 1)


def test_idle_worker_ends_when_pipe_closes(start: Start) -> None:
    worker = start()
    worker.receive_until(Ready)
    worker.connection.close()
    assert worker.exit_code() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_worker_ignores_signals(start: Start, number: int) -> None:
    worker = start()
    worker.receive_until(Ready)
    assert worker.process.pid
    os.kill(worker.process.pid, number)
    worker.send(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=2))
    assert isinstance(worker.receive_until(Ended, Failed)[-1], Ended)


def test_idle_worker_uses_no_processor_time(start: Start) -> None:
    worker = start(threads=2)
    worker.receive_until(Ready)
    worker.send(Submit(id=1, ids=[5, 6, 7], sampling=GREEDY, max_tokens=20))
    worker.receive_until(Ended)
    process, until = psutil.Process(worker.process.pid), time.monotonic() + PATIENCE_S
    while processor_seconds(process, during_s=0.5) > 0.01:  # threads of the last call may still spin
        assert time.monotonic() < until, "the idle worker uses processor time"


def processor_seconds(process: psutil.Process, during_s: float) -> float:
    before = process.cpu_times()
    time.sleep(during_s)
    after = process.cpu_times()
    return float(after.user + after.system - before.user - before.system)
