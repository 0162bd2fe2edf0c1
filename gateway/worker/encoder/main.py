"""The worker process of an encoder: it holds one model and answers Embed frames, one batch after another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from gateway.activity import Activity
from gateway.bundles.encoder.bundle import EncoderBundle, load_encoder_bundle
from gateway.errors import EngineFailed, GatewayError
from gateway.worker.decoders.onnx import SessionOptions
from gateway.worker.decoders.threads import default_encoder_threads
from gateway.worker.encoder.batches import BatchQueue, Item, Waiting
from gateway.worker.encoder.model import CpuEncoder, EncoderModel, Rows, Text
from gateway.worker.failures import failed_frame
from gateway.worker.frames import (
    Began,
    Cancel,
    Embed,
    Loading,
    Message,
    PassTimes,
    Ready,
    Shutdown,
    ToWorker,
    Vectors,
    WorkerSpec,
)
from gateway.worker.memory import peak_bytes
from gateway.worker.pipe import receive, run_worker

_WARM_UP_TOKENS = 16

Inbox = SimpleQueue[ToWorker]
Emit = Callable[[Message], None]


def encoder_worker_main(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """Load, warm up, send Ready, then answer until Shutdown. Sends Failed(id=None) if it ends for another reason."""
    run_worker(connection, lambda emit: _work(connection, spec, activity, emit))


def _work(connection: Connection, spec: WorkerSpec, activity: Activity, emit: Emit) -> None:
    inbox: Inbox = SimpleQueue()
    threading.Thread(target=receive, args=(connection, inbox.put), daemon=True).start()
    bundle = load_encoder_bundle(Path(spec.bundle))
    model = _load(bundle, spec, activity, emit)
    serve(EncoderLoop(model, bundle.info.normalised, emit, activity), inbox, activity)


def serve(loop: EncoderLoop, inbox: Inbox, activity: Activity) -> None:
    """Pass frames to the loop and make one device call at a time. Returns on Shutdown."""
    while True:
        while loop.is_idle or not inbox.empty():
            if inbox.empty():
                activity.enter("waiting")
            frame = inbox.get()
            activity.enter("working")
            match frame:
                case Embed():
                    loop.submit(frame)
                case Cancel(id=id):
                    loop.cancel(id)
                case Shutdown():
                    return
        loop.turn()


class EncoderLoop:
    """Runs the batches of all requests. `turn` makes one device call."""

    def __init__(self, model: EncoderModel, is_normalised: bool, emit: Emit, activity: Activity) -> None:
        self._model, self._is_normalised = model, is_normalised
        self._emit, self._activity = emit, activity
        self._queue = BatchQueue(model.batch_tokens)

    @property
    def is_idle(self) -> bool:
        return self._queue.is_empty

    def submit(self, frame: Embed) -> None:
        self._queue.add(frame, self._activity.device_s)

    def cancel(self, id: int) -> None:
        self._queue.cancel(id)

    def turn(self) -> None:
        """One device call. A failure ends the requests with a text in the batch."""
        batch = self._queue.next_batch()
        requests = {item.request.frame.id: item.request for item in batch}
        for id, request in requests.items():
            if not request.has_begun:
                request.has_begun = True
                self._emit(Began(id, 0))
        try:
            rows, seconds = self._run([item.text for item in batch])
        except GatewayError as error:
            for id in requests:
                self._queue.cancel(id)
                self._emit(failed_frame(id, error))
            return
        tokens = sum(len(item.text.ids) for item in batch)
        for request in requests.values():
            self._emit(self._vectors(request, batch, rows, seconds / tokens))

    def _run(self, texts: Sequence[Text]) -> tuple[Rows, float]:
        with self._activity.device_call() as call:
            rows = self._model.run(texts)
            if not np.isfinite(rows).all():
                raise EngineFailed("The model gave no usable vectors: they have numbers that are not finite.")
        return rows, call.seconds

    def _vectors(self, request: Waiting, batch: Sequence[Item], rows: Rows, token_s: float) -> Vectors:
        """The rows of one request, and its share of the seconds of the call."""
        own = [position for position, item in enumerate(batch) if item.request is request]
        tokens = sum(len(batch[position].text.ids) for position in own)
        return Vectors(
            id=request.frame.id,
            indices=[batch[position].index for position in own],
            rows=shortened(rows[own], request.frame.dimensions, self._is_normalised).astype("<f4").tobytes(),
            dimensions=min(request.frame.dimensions or rows.shape[1], rows.shape[1]),
            device_s=tokens * token_s,
            shared_s=self._activity.device_s - request.shared_from_s,
        )


def shortened(rows: Rows, dimensions: int, is_normalised: bool) -> Rows:
    """The first `dimensions` columns; 0: all. Rows of length 1 have length 1 again."""
    if not 0 < dimensions < rows.shape[1]:
        return rows
    rows = rows[:, :dimensions]
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) if is_normalised else rows


def open_model(bundle: EncoderBundle, spec: WorkerSpec, progress: Callable[[str], None]) -> EncoderModel:
    """Open the model on a provider. Raises BundleError, ConfigError or EngineFailed."""
    if spec.provider == "qnn" or (spec.provider == "auto" and bundle.info.lengths):
        from gateway.worker.decoders.static.open import select_device
        from gateway.worker.encoder.npu import NpuEncoder

        if device := select_device(spec.provider, spec.provider_options):
            return NpuEncoder(bundle, device, spec.provider_options, progress)
    return CpuEncoder(bundle, SessionOptions(threads=spec.threads or default_encoder_threads()))


def _load(bundle: EncoderBundle, spec: WorkerSpec, activity: Activity, emit: Emit) -> EncoderModel:
    started = time.perf_counter()
    emit(Loading("opening the model"))
    model = open_model(bundle, spec, lambda stage: emit(Loading(stage)))
    loaded = time.perf_counter()
    emit(Loading("warming up"))
    longest = min(model.longest, spec.context_length or model.longest)
    passes = warm_up(model, longest, activity.clock)
    emit(
        Ready(
            vocab_size=bundle.info.vocab,
            context_length=longest,
            prompt_width=max(model.batch_tokens, longest),
            device=model.device,
            placement=model.placement,
            load_s=loaded - started,
            warm_up_s=time.perf_counter() - loaded,
            peak_bytes=peak_bytes(),
            passes=passes,
        )
    )
    return model


def warm_up(model: EncoderModel, longest: int, clock: Callable[[], float]) -> PassTimes:
    """Make calls of each kind once: a short text, a full batch. Returns the time of warm ones.

    Raises EngineFailed.
    """
    count = min(_WARM_UP_TOKENS, longest)
    short = [Text([0] * count, count)]
    width = min(longest, max(count, model.batch_tokens))
    full = [Text([0] * width, width)] * max(1, model.batch_tokens // width)
    for texts in (short, full):
        if not np.isfinite(model.run(texts)).all():
            raise EngineFailed("The model gives numbers that are not finite, so its vectors would be wrong.")
    times = []
    for texts in (full, short):
        started = clock()
        model.run(texts)
        times.append(clock() - started)
    return PassTimes(times[0], times[1], width * len(full))
