"""A worker without a model: it speaks the frames of the real worker, and it is cheap enough to be killed often.

The last token of a prompt orders a fault. The token before it says after how many generated tokens.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue

from gateway.activity import Activity
from gateway.worker.frames import (
    Began,
    Cancel,
    Ended,
    Failed,
    FromWorker,
    Prefilled,
    Ready,
    Shutdown,
    Submit,
    Tokens,
    ToWorker,
    decode_to_worker,
    encode,
)

HANG, DIE, RAISE = 381, 382, 383  # tokens of the tiny model that no other prompt has
CALL_FAILURE = "QNN error 14001."


def ready() -> Ready:
    fields = {"vocab_size": 384, "context_length": 512, "device": "cpu", "placement": {}}
    times = {"load_s": 0.0, "warm_up_s": 0.0, "peak_bytes": 0}
    return Ready(**fields, **times)  # type: ignore[arg-type]


class Died(Exception):
    """The process must end here."""


class Hung(Exception):
    """The device call must not return."""


class FakeLoop:
    """Generates one token per request and turn. `turn` raises Died or Hung if a request orders it."""

    def __init__(self, emit: Callable[[FromWorker], None]) -> None:
        self._emit = emit
        self._requests: dict[int, tuple[Submit, int]] = {}  # id -> request, number of generated tokens

    @property
    def is_idle(self) -> bool:
        return not self._requests

    def receive(self, frame: ToWorker) -> None:
        match frame:
            case Submit():
                self._requests[frame.id] = (frame, 0)
            case Cancel():
                self._requests.pop(frame.id, None)

    def turn(self) -> None:
        for id, (frame, generated) in list(self._requests.items()):
            self._requests[id] = (frame, generated + 1)
            self._fail(frame, generated)
            if id in self._requests:
                self._generate(frame, generated)

    def _fail(self, frame: Submit, generated: int) -> None:
        fault, after = frame.ids[-1], frame.ids[-2]
        if fault < HANG or generated != after:
            return
        match fault:
            case 381:
                raise Hung
            case 382:
                raise Died
        del self._requests[frame.id]
        self._emit(Failed(frame.id, "DeviceFailed", CALL_FAILURE))

    def _generate(self, frame: Submit, generated: int) -> None:
        if generated == 0:
            self._emit(Began(frame.id, 0))
            self._emit(Prefilled(frame.id, 0.001))
        self._emit(Tokens(id=frame.id, ids=[40 + generated], device_s=0.001))
        if generated + 1 == frame.max_tokens:
            self._emit(Ended(frame.id, "length"))
            del self._requests[frame.id]


def main(connection: Connection, spec: object, activity: Activity) -> None:
    """The entry point of the worker process."""
    inbox: SimpleQueue[ToWorker] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    loop = FakeLoop(lambda frame: connection.send_bytes(encode(frame)))
    try:
        connection.send_bytes(encode(ready()))
        while True:
            while loop.is_idle or not inbox.empty():
                if isinstance(frame := inbox.get(), Shutdown):
                    return
                loop.receive(frame)
            loop.turn()
            time.sleep(0.001)  # what a device call takes
    except Hung:
        activity.enter("in_call")
        time.sleep(3600)
    except Died:
        activity.enter("in_call")
        os._exit(9)
    except OSError:
        return


def _receive(connection: Connection, inbox: SimpleQueue[ToWorker]) -> None:
    try:
        while True:
            inbox.put(decode_to_worker(connection.recv_bytes()))
    except (EOFError, OSError):
        os._exit(1)
