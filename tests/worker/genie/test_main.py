"""The Genie worker process: load, end and memory."""

from __future__ import annotations

from pathlib import Path

import psutil

from gateway.worker.frames import Failed, Ready, Shutdown, Tokens
from tests.support.child_call import TIMEOUT_S
from tests.support.npu.genie_worker import HOT, IDS, GenieWorker, StartWorker


def test_ready_states_device_and_limits(start: StartWorker) -> None:
    ready = start().load()
    assert isinstance(ready, Ready)
    assert (ready.vocab_size, ready.context_length, ready.device) == (128, 112, "emulated")
    assert ready.placement == {"QNN": 2}
    assert ready.load_s > 0 and ready.warm_up_s > 0 and ready.peak_bytes > 0


def test_configured_context_length_limits_context(start: StartWorker) -> None:
    ready = start(context_length=50).load()
    assert isinstance(ready, Ready) and ready.context_length == 50


def test_load_failure_is_reported_and_process_ends(genie_config: Path, start: StartWorker) -> None:
    worker = start(genie_config.parent / "gone.json")
    failed = worker.load()
    assert isinstance(failed, Failed)
    assert (failed.id, failed.kind) == (None, "BundleError")
    worker.process.join(TIMEOUT_S)
    assert worker.process.exitcode == 0


def test_shutdown_ends_process_during_answer(start: StartWorker) -> None:
    worker = start()
    worker.load()
    worker.submit(IDS[:30], max_tokens=80)
    worker.receive_until(Tokens)
    worker.send(Shutdown())
    worker.process.join(TIMEOUT_S)
    assert worker.process.exitcode == 0


def test_closed_pipe_ends_process_during_answer(start: StartWorker) -> None:
    worker = start()
    worker.load()
    worker.submit(IDS[:30], max_tokens=80)
    worker.receive_until(Tokens)
    worker.connection.close()
    worker.process.join(TIMEOUT_S)
    assert worker.process.exitcode is not None


def test_memory_stays_flat(worker: GenieWorker) -> None:
    process = psutil.Process(worker.process.pid)
    for turn in range(10):
        worker.answer([*IDS[:20], 8, turn], max_tokens=2)
    before = process.memory_info().rss
    for turn in range(60):
        worker.answer([*IDS[:20], 8, turn], max_tokens=2, sampling=HOT)
    assert process.memory_info().rss - before < 4 * 2**20
