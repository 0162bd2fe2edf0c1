"""A real Genie worker process that a test talks to in frames, as the gateway does."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gateway.activity import Activity
from gateway.sampling import Sampling
from gateway.worker.frames import (
    Began,
    Ended,
    Failed,
    FromWorker,
    Prefilled,
    Ready,
    Submit,
    Tokens,
    ToWorker,
    WorkerSpec,
    decode_from_worker,
    encode,
)
from gateway.worker.genie.main import genie_worker_main
from tests.support.child_call import TIMEOUT_S
from tests.support.npu.genie_bundle import END
from tests.support.npu.tiny_htp_decoder import TinyDecoder

GREEDY = Sampling(temperature=0.0)
HOT = Sampling(temperature=2.0)
IDS = [1, *((index * 37 + 11) % 96 + 5 for index in range(110))]
STOP_TRIGGER = TinyDecoder().stop_trigger

#: Starts a worker for one test. Arguments: the config.json (default: the shared bundle), options of WorkerSpec.
StartWorker = Callable[..., "GenieWorker"]
#: The greedy tokens after `ids`, from a plain decode loop over the same binaries.
Reference = Callable[[Sequence[int]], list[int]]


class GenieWorker:
    """The worker process and its frames."""

    def __init__(self, config: Path, **options: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        spec = WorkerSpec(bundle=str(config), **options)
        self.process = context.Process(target=genie_worker_main, args=(theirs, spec, Activity(context)), daemon=True)
        self.process.start()
        theirs.close()
        self._last_id = 0

    def load(self) -> Ready | Failed:
        loaded: Ready | Failed = self.receive_until(Ready, Failed)[-1]
        return loaded

    def send(self, frame: ToWorker) -> None:
        self.connection.send_bytes(encode(frame))

    def submit(self, ids: Sequence[int], **options: Any) -> int:
        """Send a request. Returns: its id."""
        self._last_id += 1
        settings = {"sampling": GREEDY, "max_tokens": 12, "stop_ids": [END]} | options
        self.send(Submit(id=self._last_id, ids=list(ids), **settings))
        return self._last_id

    def receive(self) -> FromWorker:
        assert self.connection.poll(TIMEOUT_S), "the worker sends nothing"
        return decode_from_worker(self.connection.recv_bytes())

    def receive_until(self, *kinds: type) -> list[Any]:
        frames: list[Any] = [self.receive()]
        while not isinstance(frames[-1], kinds):
            frames.append(self.receive())
        return frames

    def request(self, ids: Sequence[int], **options: Any) -> Reply:
        id = self.submit(ids, **options)
        return Reply(id, self.receive_until(Ended, Failed))

    def answer(self, ids: Sequence[int], **options: Any) -> list[int]:
        return self.request(ids, **options).ids

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Reply:
    """The frames of one request."""

    def __init__(self, id: int, frames: Sequence[FromWorker]) -> None:
        assert {frame.id for frame in frames} == {id}  # type: ignore[union-attr]
        self.frames = frames
        self.ids = [index for frame in frames if isinstance(frame, Tokens) for index in frame.ids]
        self.cached = next((frame.cached_tokens for frame in frames if isinstance(frame, Began)), None)
        self.chunks = sum(isinstance(frame, Prefilled) for frame in frames)
        self.last: Any = frames[-1]
