"""Genie workers, and the reference for their greedy tokens."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from gateway.worker.frames import Ready
from tests.support.child_call import TIMEOUT_S
from tests.support.npu.genie_bundle import END
from tests.support.npu.genie_worker import GenieWorker, Reference, StartWorker
from tests.support.npu.htp_compile import open_htp_session
from tests.support.npu.tiny_htp_decoder import TinyDecoder


@pytest.fixture(scope="package")
def worker(genie_config: Path) -> Iterator[GenieWorker]:
    """A loaded worker that all tests share."""
    started = GenieWorker(genie_config)
    assert isinstance(started.load(), Ready)
    yield started
    started.kill()


@pytest.fixture
def start(genie_config: Path) -> Iterator[StartWorker]:
    workers = []

    def start(config: Path = genie_config, **options: Any) -> GenieWorker:
        workers.append(GenieWorker(config, **options))
        return workers[-1]

    yield start
    for each in workers:
        each.kill()


@pytest.fixture(scope="package")
def reference(context_folder: Path) -> Iterator[Reference]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_decode, args=(theirs, context_folder), daemon=True)
    process.start()

    @functools.cache
    def decode(ids: tuple[int, ...]) -> list[int]:
        ours.send((ids, 12))
        assert ours.poll(TIMEOUT_S)
        answer: list[int] = ours.recv()
        return answer[: answer.index(END)] if END in answer else answer

    yield lambda ids: list(decode(tuple(ids)))
    process.kill()
    process.join()
    ours.close()
    theirs.close()


def _decode(connection: Connection, folder: Path) -> None:
    prompt_run, step_run = open_htp_session(folder / "prompt_ctx.onnx"), open_htp_session(folder / "token_ctx.onnx")
    while True:
        ids, count = connection.recv()
        connection.send(TinyDecoder().greedy(prompt_run, step_run, ids, count))
