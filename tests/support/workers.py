"""Worker processes for tests: real ones, and entry points that fail in a given way."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
from msgspec.structs import replace

from gateway.activity import Activity
from gateway.errors import EngineFailed, InvalidRequest
from gateway.generation import Grammar
from gateway.sandbox.process import Sandbox
from gateway.worker import main as worker
from gateway.worker.decoders.base import Decoder, DecoderSpec, KVCache, Logits
from gateway.worker.frames import (
    Failed,
    FromWorker,
    Loading,
    Ready,
    Shutdown,
    Submit,
    ToWorker,
    WorkerSpec,
    decode_from_worker,
    decode_to_worker,
    encode,
)
from gateway.worker.grammar import compile_queue, compiler
from gateway.worker.grammar.compiler import LIMITS, GrammarCompiler
from gateway.worker.grammar.constraint import CompiledGrammar

PATIENCE_S = 60.0

#: Tokens of a prompt. They make the third step after the prefill hang, end the process, or raise.
HANG, DIE, RAISE = 381, 382, 383

READY = Ready(vocab_size=8, context_length=8, device="cpu", placement={}, load_s=0.0, warm_up_s=0.0, peak_bytes=0)


class SpawnedWorker:
    """A worker process and this end of its pipe."""

    def __init__(
        self, spec: WorkerSpec, entry: Callable[[Connection, WorkerSpec, Activity], None] = worker.worker_main
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=entry, args=(theirs, spec, Activity(context)), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, frame: ToWorker) -> None:
        self.connection.send_bytes(encode(frame))

    def receive(self) -> FromWorker:
        assert self.connection.poll(PATIENCE_S), "the worker sends no frame"
        return decode_from_worker(self.connection.recv_bytes())

    def receive_until(self, *kinds: type) -> list[Any]:
        """All frames up to the first one of these kinds."""
        frames: list[Any] = [self.receive()]
        while not isinstance(frames[-1], kinds):
            frames.append(self.receive())
        return frames

    def exit_code(self) -> int | None:
        self.process.join(PATIENCE_S)
        return self.process.exitcode

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Wrapped:
    """A real decoder; a subclass replaces some of its methods. Each prompt has its own calls."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @property
    def spec(self) -> DecoderSpec:
        return replace(self._decoder.spec, shared_prompt_rows=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)


class FaultyDecoder(Wrapped):
    """Fails if the prompt has a token HANG, DIE or RAISE."""

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
    """Each call after the warm-up fails."""

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        if any(ids):  # the warm-up has only zeros
            raise EngineFailed("The model failed while it ran: QNN error 14001.")
        return self._decoder.prefill(cache, ids)


class SlowDecoder(Wrapped):
    """Each step takes 20 ms longer, so that a test can decide how long an answer takes."""

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        time.sleep(0.02)
        return self._decoder.step(caches, ids)


def takes_20_ms_per_step(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    _serve_through(SlowDecoder, connection, spec, activity)


def faulty(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    _serve_through(FaultyDecoder, connection, spec, activity)


def fails_every_call(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    _serve_through(FailingDecoder, connection, spec, activity)


def _serve_through(wrapper: type[Wrapped], connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """The real worker with a wrapped decoder."""
    open_decoder = worker.open_decoder
    worker.open_decoder = lambda *args: wrapper(open_decoder(*args))
    worker.worker_main(connection, spec, activity)


def has_less_than_two_gigabytes(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """The real worker with almost 2 GiB above the interpreter and the libraries; its threads reserve some of them."""
    import resource  # not on Windows

    limit = psutil.Process().memory_info().vms + (2 << 30) - (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    worker.worker_main(connection, spec, activity)


def dies_at_once(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    os._exit(3)


def dies_when_ready(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    connection.send_bytes(encode(READY))
    os._exit(3)


def refuses_bundle(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    connection.send_bytes(encode(Failed(None, "BundleError", "The bundle was made for another chip.")))


def has_a_driver_without_memory(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """The driver refuses every session on the NPU with its code for a lack of memory."""
    import onnxruntime

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("QNN SetupBackend failed: Context create from binary failed, err 1002")

    onnxruntime.InferenceSession = refuse
    worker.worker_main(connection, spec, activity)


def fails_requests(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    connection.send_bytes(encode(READY))
    while isinstance(frame := decode_to_worker(connection.recv_bytes()), Submit):
        connection.send_bytes(encode(Failed(frame.id, "DeviceFailed", "QNN error 14001.")))


def fails_requests_with_bugs(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """Each request fails for a reason that is not the device: a bug, or a compiler that ended."""
    connection.send_bytes(encode(READY))
    while isinstance(frame := decode_to_worker(connection.recv_bytes()), Submit):
        kind = "GatewayError" if frame.id % 2 else "EngineFailed"
        connection.send_bytes(encode(Failed(frame.id, kind, "The sampler failed: TypeError.")))


def never_finishes_loading(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    connection.send_bytes(encode(Loading("compiling")))
    time.sleep(3600)


def sends_invalid_frame(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    print("a native library prints this", flush=True)
    connection.send_bytes(encode(READY))
    connection.send_bytes(b"\xc1 no frame")
    time.sleep(3600)


def serves_nothing(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    connection.send_bytes(encode(READY))
    while not isinstance(decode_to_worker(connection.recv_bytes()), Shutdown):
        pass


def hangs_in_call(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """Waits until its first request, then never returns from a device call."""
    connection.send_bytes(encode(READY))
    connection.recv_bytes()
    with activity.device_call():
        time.sleep(3600)


def hangs_outside_call(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """Waits until its first request, then works without end and makes no device call."""
    connection.send_bytes(encode(READY))
    connection.recv_bytes()
    activity.enter("working")
    time.sleep(3600)


def dies_in_call(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    connection.send_bytes(encode(READY))
    activity.enter("in_call")
    os._exit(3)


def ignores_shutdown(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    if sys.platform != "win32":
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection.send_bytes(encode(READY))
    time.sleep(3600)


def takes_1_ms_per_call(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """The real worker with a clock that shows one millisecond more at each look, so a device call takes 1 ms or few."""
    ticks = itertools.count()
    activity.clock = lambda: next(ticks) / 1000
    worker.worker_main(connection, spec, activity)


def compiles_for_one_second(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """The real worker with one second of processor time for a grammar instead of five."""
    compiler, limits = worker.GrammarCompiler, LIMITS._replace(cpu_s=1, wall_s=60 * PATIENCE_S)
    worker.GrammarCompiler = lambda *args: compiler(*args, limits=limits)  # type: ignore[misc, assignment]
    worker.worker_main(connection, spec, activity)


def waits_to_compile(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """As `takes_1_ms_per_call`. A grammar with 10000... compiles until there is a file `go` next to the bundle."""
    quick, gate = GrammarCompiler.compile_quickly, Path(spec.bundle).parent / "go"

    def compile_quickly(compiler: GrammarCompiler, grammar: Grammar) -> CompiledGrammar | None:
        return None if "10000" in grammar.source else quick(compiler, grammar)

    def compile(compiler: GrammarCompiler, grammar: Grammar) -> CompiledGrammar:
        while not gate.exists():
            time.sleep(0.05)
        raise InvalidRequest("It took too long.", param=grammar.param)

    GrammarCompiler.compile_quickly = compile_quickly  # type: ignore[method-assign]
    GrammarCompiler.compile = compile  # type: ignore[method-assign]
    takes_1_ms_per_call(connection, spec, activity)


def compiles_at_usual_priority(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """Slow grammars get as much processor time as the requests next to them."""
    compile_queue.lower_thread_priority = lambda: None
    compiler.Sandbox = lambda *args, **options: Sandbox(*args)  # type: ignore[assignment, misc]
    worker.worker_main(connection, spec, activity)
