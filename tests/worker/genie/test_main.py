"""The Genie worker process: load, end and memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.worker.frames import Failed, Ready, Shutdown, Tokens
from tests.support.child_call import TIMEOUT_S
from tests.support.npu.genie_bundle import END
from tests.support.npu.genie_layouts import LAYOUTS, Layout, write_layout
from tests.support.npu.genie_worker import HOT, IDS, GenieWorker, Reference, StartWorker
from tests.support.npu.htp_compile import context_binaries


def test_ready_states_device_and_limits(start: StartWorker) -> None:
    ready = start().load()
    assert isinstance(ready, Ready)
    assert (ready.vocab_size, ready.context_length, ready.device) == (128, 112, "emulated")
    assert ready.placement == {"QNN": 2}
    assert ready.load_s > 0 and ready.warm_up_s > 0 and ready.peak_bytes > 0


def test_configured_context_length_limits_context(start: StartWorker) -> None:
    ready = start(context_length=50).load()
    assert isinstance(ready, Ready) and ready.context_length == 50


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_right_tokens(
    layout: Layout, context_folder: Path, tmp_path: Path, start: StartWorker, reference: Reference
) -> None:
    write_layout(tmp_path, layout, context_binaries(context_folder))
    worker = start(tmp_path)
    ready = worker.load()
    assert isinstance(ready, Ready) and (ready.context_length, ready.prompt_width) == (112, 8)
    for ids in (IDS[:20], [*IDS[:30], 8, 9]):
        assert worker.answer(ids) == reference(ids)


@pytest.mark.parametrize("bos", [-1, None, "absent"])
def test_model_without_begin_token_gives_right_tokens(
    bos: int | str | None, context_folder: Path, tmp_path: Path, start: StartWorker, reference: Reference
) -> None:
    def change(dialog: dict[str, Any]) -> None:
        del dialog["context"]["bos-token"]
        dialog["context"].update({} if bos == "absent" else {"bos-token": bos})

    write_layout(tmp_path, "geniex", context_binaries(context_folder), change)
    worker = start(tmp_path)
    assert isinstance(worker.load(), Ready)
    assert worker.answer(IDS[1:30]) == reference(IDS[1:30])


def test_more_forms_of_a_configuration_give_right_tokens(
    context_folder: Path, tmp_path: Path, start: StartWorker, reference: Reference
) -> None:
    def change(dialog: dict[str, Any]) -> None:
        htp, scaling = dialog["engine"]["backend"]["QnnHtp"], {"rope-type": "llama3", "factor": 1.0}
        scaling |= {"low-freq-factor": 1.0, "high-freq-factor": 4.0, "original-max-position-embeddings": 8192}
        rope = {"type": "rope", "rope-dim": htp.pop("pos-id-dim"), "rope-theta": htp.pop("rope-theta")}
        dialog["engine"]["model"]["positional-encoding"] = rope | {"rope-scaling": scaling}
        htp |= {"enable-graph-switching": False, "mmap-budget": 25}
        dialog["context"] |= {"eos-token": [END, 2], "pad-token": 0, "n-embd": 2048}
        dialog["sampler"] |= {"temp": 0.0, "top-k": 1, "greedy": True}

    write_layout(tmp_path, "geniex", context_binaries(context_folder), change)
    worker = start(tmp_path)
    assert isinstance(worker.load(), Ready)
    assert worker.answer(IDS[:20]) == reference(IDS[:20])


def test_foreign_end_token_does_not_end_answers(
    context_folder: Path, tmp_path: Path, start: StartWorker, reference: Reference
) -> None:
    expected = reference(IDS[:20])
    write_layout(
        tmp_path,
        "aidevhome",
        context_binaries(context_folder),
        lambda dialog: dialog["context"].update({"eot-token": expected[3]}),
    )
    worker = start(tmp_path)
    assert isinstance(worker.load(), Ready)
    assert worker.answer(IDS[:20]) == expected


def test_polling_can_be_configured(start: StartWorker) -> None:
    worker = start(poll=True)
    worker.load()
    worker.answer(IDS[:20])
    process, deadline = psutil.Process(worker.process.pid), time.monotonic() + TIMEOUT_S

    def cpu_s() -> float:
        times = process.cpu_times()
        return times.user + times.system

    before = cpu_s()
    while cpu_s() - before < 0.3:  # idle, and busy nevertheless
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
