"""A worker without a model, light enough to be killed by the thousand: it speaks the frames of the real one.

A request's last prompt token orders a fault, and the one before it after how many tokens.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from queue import SimpleQueue

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
SAID = "QNN error 14001."


def ready() -> Ready:
    fields = {"vocab_size": 384, "context_length": 512, "device": "cpu", "placement": {}}
    times = {"load_s": 0.0, "warm_up_s": 0.0, "peak_bytes": 0}
    return Ready(**fields, **times)  # type: ignore[arg-type]


class Died(Exception):
    """The process ends here."""


class Hung(Exception):
    """The device call does not come back."""


class Loop:
    """Gives every request a token in turn. `turn` raises Died and Hung when a request orders it."""

    def __init__(self, emit: Callable[[FromWorker], None]) -> None:
        self._emit = emit
        self._open: dict[int, tuple[Submit, int]] = {}

    @property
    def is_idle(self) -> bool:
        return not self._open

    def hear(self, frame: ToWorker) -> None:
        match frame:
            case Submit():
                self._open[frame.id] = (frame, 0)
            case Cancel():
                self._open.pop(frame.id, None)

    def turn(self) -> None:
        for id, (frame, made) in list(self._open.items()):
            self._open[id] = (frame, made + 1)
            self._fail(frame, made)
            if id in self._open:
                self._say(frame, made)

    def _fail(self, frame: Submit, made: int) -> None:
        fault, after = frame.ids[-1], frame.ids[-2]
        if fault < HANG or made != after:
            return
        match fault:
            case 381:
                raise Hung
            case 382:
                raise Died
        del self._open[frame.id]
        self._emit(Failed(frame.id, "EngineFailed", SAID))

    def _say(self, frame: Submit, made: int) -> None:
        if made == 0:
            self._emit(Began(frame.id, 0))
            self._emit(Prefilled(frame.id, 0.001))
        self._emit(Tokens(id=frame.id, ids=[40 + made], device_s=0.001))
        if made + 1 == frame.max_tokens:
            self._emit(Ended(frame.id, "length"))
            del self._open[frame.id]


def main(connection: Connection, spec: object) -> None:
    """What runs in the process."""
    inbox: SimpleQueue[ToWorker] = SimpleQueue()
    threading.Thread(target=_receive, args=(connection, inbox), daemon=True).start()
    loop = Loop(lambda frame: connection.send_bytes(encode(frame)))
    try:
        connection.send_bytes(encode(ready()))
        while True:
            while loop.is_idle or not inbox.empty():
                if isinstance(frame := inbox.get(), Shutdown):
                    return
                loop.hear(frame)
            loop.turn()
            time.sleep(0.001)
    except Hung:
        time.sleep(3600)
    except Died:
        os._exit(9)
    except OSError:
        return


def _receive(connection: Connection, inbox: SimpleQueue[ToWorker]) -> None:
    try:
        while True:
            inbox.put(decode_to_worker(connection.recv_bytes()))
    except (EOFError, OSError):
        os._exit(1)
