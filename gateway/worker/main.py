"""The child side: one process that holds one model and answers frames.

Started by the gateway with the `spawn` method: `Process(target=worker_main, args=(connection, spec))`. Frames only go
through `connection`. The process ends when it is told to (`Shutdown`), when the other end of the pipe is gone, or when
the model cannot be loaded. One thread receives; the other loads, then makes device calls, and sleeps while there are
none to make.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from gateway.bundles.bundle import load_bundle
from gateway.bundles.graph_files import check_graph_files
from gateway.errors import BundleError, EngineFailed, GatewayError
from gateway.worker.decoders.base import Decoder, KVCache
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.decoders.onnx import SessionOptions
from gateway.worker.frame_batcher import FrameBatcher
from gateway.worker.frames import (
    NO_MEMORY,
    Cancel,
    Failed,
    FromWorker,
    Loading,
    Message,
    Ready,
    Shutdown,
    Submit,
    ToWorker,
    WorkerSpec,
    decode_to_worker,
    encode,
)
from gateway.worker.grammar.compile_queue import Compiled, GrammarQueue
from gateway.worker.grammar.constraint import GrammarCompiler
from gateway.worker.memory import peak_bytes
from gateway.worker.token_loop import TokenLoop

_log = logging.getLogger(__name__)
_ORPHAN_GRACE_S = 5.0  # what a device call that is under way gets when the gateway is gone
_WARM_UP_TOKENS = 16

Inbox = SimpleQueue[ToWorker | Compiled]


def worker_main(connection: Connection, spec: WorkerSpec) -> None:
    """Load, warm up, say Ready, then answer until told to stop. Says Failed(id=None) before any other end."""
    run_worker(connection, lambda emit: _work(connection, spec, emit))


def run_worker(connection: Connection, work: Callable[[Callable[[Message], None]], None]) -> None:
    """Do a worker's `work`, which is given what sends frames; the reason of an end that nobody asked for is sent."""
    leave_signals_to_the_gateway()

    def emit(frame: Message) -> None:
        connection.send_bytes(encode(frame))

    with suppress(OSError):  # the gateway is gone, and so is everybody who might have waited
        try:
            work(emit)
        except Exception as error:
            emit(_last_words(error))


def _work(connection: Connection, spec: WorkerSpec, emit: Callable[[Message], None]) -> None:
    inbox: Inbox = SimpleQueue()
    threading.Thread(target=receive, args=(connection, inbox.put), daemon=True).start()
    decoder, caches = _load(spec, emit)
    grammar_queue = _grammar_queue(spec, decoder, inbox)
    batcher = FrameBatcher(emit)
    loop = TokenLoop(decoder, caches, batcher.put, make_constraint=grammar_queue, prefix_cache=spec.prefix_cache)
    serve(loop, inbox, grammar_queue, batcher)


def _last_words(error: Exception) -> Failed:
    match error:
        case GatewayError():
            return Failed(None, type(error).__name__, error.message)
        case MemoryError():
            return Failed(None, "EngineFailed", NO_MEMORY)
        case OSError():
            pass  # most likely the pipe's, when the gateway is gone: nothing to report
        case _:
            _log.error("a worker failed", exc_info=error)
    return Failed(None, "EngineFailed", f"The worker failed: {type(error).__name__}.")


def leave_signals_to_the_gateway() -> None:
    """What tells a gateway to end reaches its whole process group, from a console, a supervisor or a container. The
    gateway lets running answers finish first, and those need this process: it is told over the pipe, or killed."""
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the last one is Windows' Ctrl-Break
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)


def receive(connection: Connection, deliver: Callable[[ToWorker], None]) -> None:
    """Deliver frames until the gateway is gone; then Shutdown, and a while later the end."""
    try:
        while True:
            deliver(decode_to_worker(connection.recv_bytes()))
    except (EOFError, OSError):
        deliver(Shutdown())
        time.sleep(_ORPHAN_GRACE_S)
        os._exit(1)  # a call that does not return must not keep the model in memory for nobody


def serve(loop: TokenLoop, inbox: Inbox, grammar_queue: GrammarQueue, batcher: FrameBatcher) -> None:
    """Hand frames to the loop and let it make one device call at a time; returns on Shutdown."""
    while True:
        while loop.is_idle or not inbox.empty():
            match inbox.get():
                case Submit() as frame:
                    if not grammar_queue.defer(frame):
                        loop.submit(frame)
                case Compiled() as compiled:
                    if grammar_queue.finish(compiled):
                        loop.submit(compiled.frame)
                case Cancel() as cancel:
                    grammar_queue.cancel(cancel.id)
                    loop.cancel(cancel)
                case Shutdown():
                    return
        loop.turn()
        batcher.flush()


def _load(spec: WorkerSpec, emit: Callable[[FromWorker], None]) -> tuple[Decoder, list[KVCache]]:
    started = time.perf_counter()
    emit(Loading("opening the model"))
    try:
        decoder = open_decoder(spec, lambda stage: emit(Loading(stage)))
        caches = [decoder.new_cache() for _ in range(spec.max_sequences)]
        loaded = time.perf_counter()
        emit(Loading("warming up"))
        warm_up(decoder, caches)
    except (MemoryError, RuntimeError, ValueError) as error:
        raise EngineFailed(f"The model could not be loaded: {type(error).__name__}: {error}") from error
    emit(
        Ready(
            vocab_size=decoder.spec.vocab_size,
            context_length=decoder.spec.context_length,
            prompt_width=decoder.spec.prompt_width,
            device=decoder.spec.device,
            placement=decoder.spec.placement,
            load_s=loaded - started,
            warm_up_s=time.perf_counter() - loaded,
            peak_bytes=peak_bytes(),
        )
    )
    return decoder, caches


def _grammar_queue(spec: WorkerSpec, decoder: Decoder, inbox: Inbox) -> GrammarQueue:
    bundle = load_bundle(Path(spec.bundle))
    compiler = GrammarCompiler(bundle.tokenizer_path, decoder.spec.vocab_size, bundle.config.eos_ids)
    return GrammarQueue(compiler, inbox.put)


def open_decoder(spec: WorkerSpec, progress: Callable[[str], None] = lambda stage: None) -> Decoder:
    """The decoder for a bundle on a provider. Raises BundleError, ConfigError or EngineFailed."""
    bundle = load_bundle(Path(spec.bundle))
    check_graph_files(bundle)
    if bundle.config.decoder.stages:
        from gateway.worker.decoders.static.open import (
            open_static_decoder,  # with onnx, a fifth of a second of every start
        )

        return open_static_decoder(
            bundle.folder,
            provider=spec.provider,
            options=spec.provider_options,
            threads=spec.threads,
            context_length=spec.context_length,
            sequences=spec.max_sequences,
            progress=progress,
        )
    if spec.provider == "qnn":
        raise BundleError(
            f"{bundle.folder.name} is one graph of open shapes, which only the CPU runs; "
            "`npu-gateway build --target qnn` makes a bundle for the NPU."
        )
    return CpuDecoder(
        bundle,
        slots=spec.max_sequences,
        context_length=spec.context_length,
        options=SessionOptions(threads=spec.threads),
    )


def warm_up(decoder: Decoder, caches: Sequence[KVCache]) -> None:
    """Run every kind of call once: the first one prepares the network, which may take many seconds."""
    tokens = min(_WARM_UP_TOKENS, decoder.spec.prompt_width, decoder.spec.context_length - 1)
    decoder.prefill(caches[0], [0] * tokens)
    for count in sorted({1, len(caches)}):
        caches[0].truncate(tokens)  # a short context has no room for more than one step
        decoder.step(caches[:count], [0] * count)
    for cache in caches:
        cache.truncate(0)
