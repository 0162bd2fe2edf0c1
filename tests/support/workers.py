"""What runs in worker processes whose failures are ordered."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import psutil

from gateway.errors import EngineFailed
from gateway.worker import main as worker
from gateway.worker.decoders.base import Decoder, KVCache, Logits
from gateway.worker.frames import Failed, Loading, Ready, Shutdown, Submit, WorkerSpec, decode_to_worker, encode

#: A prompt with one of these tokens makes the third step after it do this.
HANG, DIE, RAISE = 381, 382, 383

READY = Ready(vocab_size=8, context_length=8, device="cpu", placement={}, load_s=0.0, warm_up_s=0.0, peak_bytes=0)


class Wrapped:
    """A real decoder, in all that a subclass does not change."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


class FaultyDecoder(Wrapped):
    """Fails when a prompt asks for it."""

    _fault, _steps = 0, 0

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        self._fault, self._steps = max((i for i in ids if i >= HANG), default=self._fault), 0
        return self._decoder.prefill(cache, ids)

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        self._steps += 1
        if self._fault and self._steps == 3:
            fault, self._fault = self._fault, 0
            match fault:
                case 381:
                    time.sleep(3600)
                case 382:
                    os._exit(9)
                case 383:
                    raise RuntimeError("QNN error 14001")
        return self._decoder.step(caches, ids)


class FailingDecoder(Wrapped):
    """Its device answers no call any more once it is warm."""

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        if any(ids):  # not the warm-up's
            raise EngineFailed("The model failed while it ran: QNN error 14001.")
        return self._decoder.prefill(cache, ids)


class SlowDecoder(Wrapped):
    """Takes 20 ms more for each step, so that an answer takes as long as a test needs."""

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        time.sleep(0.02)
        return self._decoder.step(caches, ids)


class StarvedDecoder(Wrapped):
    """Has 8 MiB left for a prompt of more than 16 tokens, and no limit for all else the process does."""

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        if len(ids) <= 16:
            return self._decoder.prefill(cache, ids)
        _limit_memory(8 << 20)
        try:
            return self._decoder.prefill(cache, ids)
        finally:
            _limit_memory(None)


def takes_20_ms_per_step(connection: Connection, spec: WorkerSpec) -> None:
    _serve_through(SlowDecoder, connection, spec)


def has_no_memory_for_long_prompts(connection: Connection, spec: WorkerSpec) -> None:
    _serve_through(StarvedDecoder, connection, spec)


def faulty(connection: Connection, spec: WorkerSpec) -> None:
    _serve_through(FaultyDecoder, connection, spec)


def fails_every_call(connection: Connection, spec: WorkerSpec) -> None:
    _serve_through(FailingDecoder, connection, spec)


def _serve_through(wrapper: type[Wrapped], connection: Connection, spec: WorkerSpec) -> None:
    """The real worker with its decoder wrapped."""
    open_decoder = worker.open_decoder
    worker.open_decoder = lambda *args: wrapper(open_decoder(*args))
    worker.worker_main(connection, spec)


def has_no_memory_to_load(connection: Connection, spec: WorkerSpec) -> None:
    """The real worker on a machine that gives it 48 MiB more than the interpreter and the libraries have."""
    _limit_memory(48 << 20)
    worker.worker_main(connection, spec)


def _limit_memory(spare: int | None) -> None:
    """Let this process allocate `spare` bytes more; None: as many as it wants."""
    import resource  # not on Windows

    most = resource.RLIM_INFINITY if spare is None else psutil.Process().memory_info().vms + spare
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def dies_at_once(connection: Connection, spec: WorkerSpec) -> None:
    os._exit(3)


def dies_when_ready(connection: Connection, spec: WorkerSpec) -> None:
    connection.send_bytes(encode(READY))
    os._exit(3)


def refuses(connection: Connection, spec: WorkerSpec) -> None:
    connection.send_bytes(encode(Failed(None, "BundleError", "The bundle was made for another chip.")))


def fails_requests(connection: Connection, spec: WorkerSpec) -> None:
    connection.send_bytes(encode(READY))
    while isinstance(frame := decode_to_worker(connection.recv_bytes()), Submit):
        connection.send_bytes(encode(Failed(frame.id, "EngineFailed", "QNN error 14001.")))


def loads_for_ever(connection: Connection, spec: WorkerSpec) -> None:
    connection.send_bytes(encode(Loading("compiling")))
    time.sleep(3600)


def talks_nonsense(connection: Connection, spec: WorkerSpec) -> None:
    print("a native library prints this", flush=True)
    connection.send_bytes(encode(READY))
    connection.send_bytes(b"\xc1 no frame")
    time.sleep(3600)


def waits(connection: Connection, spec: WorkerSpec) -> None:
    connection.send_bytes(encode(READY))
    while not isinstance(decode_to_worker(connection.recv_bytes()), Shutdown):
        pass


def ignores_shutdown(connection: Connection, spec: WorkerSpec) -> None:
    if sys.platform != "win32":
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection.send_bytes(encode(READY))
    time.sleep(3600)
