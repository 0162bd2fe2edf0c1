"""The worker process of an ONNX bundle: it holds one model and answers frames.

The gateway spawns it. It ends on Shutdown, when the gateway has ended, or when the model cannot be loaded. One thread
receives frames. The main thread loads the model, then makes the device calls; it sleeps while there are none.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from gateway.activity import Activity
from gateway.bundles.genie.bundle import GenieBundle
from gateway.bundles.graph_files import check_graph_files
from gateway.bundles.hashes import HASHES_FILE
from gateway.bundles.open import open_bundle
from gateway.errors import BundleError, EngineFailed
from gateway.worker.decoders.base import Decoder, KVCache
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.decoders.onnx import SessionOptions
from gateway.worker.decoders.packed import pack_once, packed_path
from gateway.worker.decoders.self_test import self_test
from gateway.worker.drafting.model import DraftModel
from gateway.worker.failures import as_gateway_error
from gateway.worker.frame_batcher import FrameBatcher
from gateway.worker.frames import (
    Cancel,
    DraftLost,
    FreeCache,
    FromWorker,
    Loading,
    Message,
    PassTimes,
    Ready,
    Shutdown,
    Submit,
    ToWorker,
    WorkerSpec,
)
from gateway.worker.grammar.compile_queue import Compiled, GrammarQueue
from gateway.worker.grammar.compiler import GrammarCompiler
from gateway.worker.memory import peak_bytes
from gateway.worker.pipe import receive, run_worker
from gateway.worker.token_loop import TokenLoop

_WARM_UP_TOKENS = 16
_SLOW_PASSES_S = 1.0  # passes that take longer are measured once
_SLOW_CPU_PASSES_S = 0.1  # ... on the CPU, where the first pass is as fast as the others

Inbox = SimpleQueue[ToWorker | Compiled]


def worker_main(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """Load, warm up, send Ready, then answer until Shutdown. Sends Failed(id=None) if it ends for another reason."""
    run_worker(connection, lambda emit: _work(connection, spec, activity, emit))


def _work(connection: Connection, spec: WorkerSpec, activity: Activity, emit: Callable[[Message], None]) -> None:
    inbox: Inbox = SimpleQueue()
    threading.Thread(target=receive, args=(connection, inbox.put), daemon=True).start()
    decoder, caches, grammar_queue, passes, draft_model = _load(spec, emit, inbox, activity)
    batcher = FrameBatcher(emit)
    loop = TokenLoop(
        decoder,
        caches,
        batcher.put,
        make_constraint=grammar_queue,
        token_bytes=grammar_queue.token_bytes,
        prefix_cache=spec.prefix_cache,
        activity=activity,
        passes=passes,
        draft_model=draft_model,
    )
    try:
        serve(loop, inbox, grammar_queue, batcher, activity)
    finally:
        grammar_queue.close()


def serve(
    loop: TokenLoop, inbox: Inbox, grammar_queue: GrammarQueue, batcher: FrameBatcher, activity: Activity
) -> None:
    """Pass frames to the loop and make one device call at a time. Returns on Shutdown."""
    while True:
        while loop.is_idle or not inbox.empty():
            match _next(inbox, activity):
                case Submit() as frame:
                    if not grammar_queue.defer(frame):
                        loop.submit(frame)
                case Compiled() as compiled:
                    if grammar_queue.finish(compiled):
                        loop.submit(compiled.frame)
                case Cancel() as cancel:
                    grammar_queue.cancel(cancel.id)
                    loop.cancel(cancel)
                case FreeCache():
                    loop.free_cache()
                case Shutdown():
                    return
        loop.turn()
        batcher.flush()


def _next(inbox: Inbox, activity: Activity) -> ToWorker | Compiled:
    """The next message. The worker is not stuck while it waits for it."""
    if inbox.empty():
        activity.enter("waiting")
    message = inbox.get()
    activity.enter("working")
    return message


class _Loaded(NamedTuple):
    decoder: Decoder
    caches: list[KVCache]
    grammar_queue: GrammarQueue
    passes: PassTimes
    draft_model: DraftModel | None


def _load(spec: WorkerSpec, emit: Callable[[FromWorker], None], inbox: Inbox, activity: Activity) -> _Loaded:
    started = time.perf_counter()
    emit(Loading("opening the model"))
    try:
        decoder = open_decoder(spec, lambda stage: emit(Loading(stage)))
        caches = [decoder.new_cache() for _ in range(spec.max_sequences)]
        loaded = time.perf_counter()
        emit(Loading("warming up"))
        bundle = open_bundle(Path(spec.bundle), tokenizer=spec.tokenizer)
        compiler = GrammarCompiler(bundle.tokenizer_path, decoder.spec.vocab_size, bundle.end_ids)
        grammar_queue = GrammarQueue(compiler, inbox.put)
        passes = warm_up(decoder, caches, activity.clock, bundle.end_ids)
        draft_model = _load_draft_model(spec, decoder, bundle.tokenizer_path, emit, activity) if spec.draft else None
    except (RuntimeError, ValueError) as error:  # a graph that opens, but whose shapes do not fit
        raise EngineFailed(f"The model could not be loaded: {type(error).__name__}: {error}") from error
    emit(
        Ready(
            vocab_size=decoder.spec.vocab_size,
            context_length=decoder.spec.context_length,
            prompt_width=decoder.spec.prompt_width,
            device=decoder.spec.device,
            placement=decoder.spec.placement,
            greedy_only=decoder.spec.greedy_only,
            load_s=loaded - started,
            warm_up_s=time.perf_counter() - loaded,
            peak_bytes=peak_bytes(),
            soc=decoder.spec.soc,
            mode_refusal=decoder.spec.mode_refusal,
            passes=passes,
            draft=Path(spec.draft).name if draft_model else "",
        )
    )
    return _Loaded(decoder, caches, grammar_queue, passes, draft_model)


def _load_draft_model(
    spec: WorkerSpec, main: Decoder, tokenizer: Path, emit: Callable[[FromWorker], None], activity: Activity
) -> DraftModel | None:
    """None: it does not start on this machine, for example for lack of memory. Raises BundleError."""
    from gateway.worker.drafting.load import load_draft_model

    def open_warm(own: WorkerSpec) -> tuple[Decoder, list[KVCache], PassTimes]:
        decoder = open_decoder(own, lambda stage: emit(Loading(f"the draft model: {stage}")))
        caches = [decoder.new_cache() for _ in range(own.max_sequences)]
        return decoder, caches, warm_up(decoder, caches, activity.clock)

    emit(Loading("opening the draft model"))
    try:
        return load_draft_model(spec, main, tokenizer, activity, open_warm)
    except (EngineFailed, MemoryError, OSError, RuntimeError, ValueError) as error:
        emit(DraftLost(as_gateway_error(error, "The draft model").message))
        return None


def open_decoder(spec: WorkerSpec, progress: Callable[[str], None] = lambda stage: None) -> Decoder:
    """Open the decoder for a bundle on a provider. Raises BundleError, ConfigError or EngineFailed."""
    bundle = open_bundle(Path(spec.bundle), tokenizer=spec.tokenizer)
    if isinstance(bundle, GenieBundle):
        from gateway.worker.decoders.static.genie_pipelines import open_genie_decoder

        return open_genie_decoder(
            bundle,
            provider=spec.provider,
            options=spec.provider_options,
            threads=spec.threads,
            context_length=spec.context_length,
            progress=progress,
        )
    graph = bundle.folder / bundle.config.decoder.filename
    if bundle.config.decoder.stages or not packed_path(graph).is_file():  # else its files are as they were then
        check_graph_files(bundle)
    if bundle.config.decoder.stages:
        from gateway.worker.decoders.static.open import open_static_decoder  # imports onnx: 0.2 s of every start

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
            f"{bundle.folder.name} is one graph of open shapes, and only the CPU runs it. "
            "`npu-gateway build --target qnn` makes a bundle for the NPU."
        )
    is_ours = (bundle.folder / HASHES_FILE).is_file()  # nothing is written into the folders of other programs
    if is_ours:
        pack_once(graph, progress)
    return CpuDecoder(
        bundle,
        slots=spec.max_sequences,
        context_length=spec.context_length,
        options=SessionOptions(threads=spec.threads),
        keeps_record=is_ours,
    )


def warm_up(
    decoder: Decoder, caches: Sequence[KVCache], clock: Callable[[], float], end_ids: Sequence[int] = ()
) -> PassTimes:
    """Make each kind of device call. Returns the times of two kinds by a clock in seconds. Leaves the caches empty.

    On an NPU the first call prepares the network, which can take many seconds, and the calls are also a test of the
    model: see `self_test`. The CPU prepares nothing for more sequences, so one of them is enough.
    """
    if decoder.spec.device in ("npu", "emulated"):
        self_test(decoder, caches[0], end_ids)
        if len(caches) > 1:
            caches[0].truncate(min(caches[0].length, _warm_up_tokens(decoder)))  # a short context has one free row only
            decoder.step(caches, [0] * len(caches))
            for cache in caches:
                cache.truncate(0)
    return time_passes(decoder, caches[0], clock)


def time_passes(decoder: Decoder, cache: KVCache, clock: Callable[[], float]) -> PassTimes:
    """The faster one of two passes of each kind, by a clock in seconds. One of each, if they are slow."""
    tokens, wide_s, step_s = _warm_up_tokens(decoder), math.inf, math.inf
    for _ in range(2):
        cache.truncate(0)
        started = clock()
        decoder.prefill(cache, [0] * tokens)
        prefilled = clock()
        decoder.step([cache], [0])
        wide_s, step_s = min(wide_s, prefilled - started), min(step_s, clock() - prefilled)
        if wide_s + step_s > (_SLOW_CPU_PASSES_S if decoder.spec.device == "cpu" else _SLOW_PASSES_S):
            break
    cache.truncate(0)
    return PassTimes(wide_s, step_s, tokens if decoder.spec.device == "cpu" else decoder.spec.prompt_width)


def _warm_up_tokens(decoder: Decoder) -> int:
    return min(_WARM_UP_TOKENS, decoder.spec.prompt_width, decoder.spec.context_length - 1)
