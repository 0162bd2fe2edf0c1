"""One request at an encoder's worker: its frames become one `Embedded`, and its meter is updated."""

from __future__ import annotations

from array import array
from collections.abc import Callable

from gateway.embedding import Embedded
from gateway.engines.base import Emit
from gateway.engines.running_request import RunningRequest
from gateway.errors import error_class
from gateway.generation import ChoiceFinished, Meter, Started, Usage
from gateway.worker.frames import Began, Embed, Failed, FromWorker, Vectors


class EmbeddingRun(RunningRequest):
    """Args:
    frame: what the worker got.
    is_score: the rows are scores, of one number each.
    call_s: seconds of the running device call.
    """

    def __init__(self, frame: Embed, is_score: bool, meter: Meter, emit: Emit, call_s: Callable[[], float]) -> None:
        super().__init__(frame.id, sum(map(len, frame.ids)), meter, call_s)
        self._is_score, self._emit = is_score, emit
        self._tokens = tuple(map(len, frame.ids))
        self._rows: bytearray | None = None  # of all texts; None: no row has come
        self._missing = len(frame.ids)

    def take(self, frame: FromWorker) -> None:
        match frame:
            case Began():
                self._meter.begin()
                self._meter.call_started()
                self._emit(Started(prompt_tokens=self._meter.prompt_tokens))
            case Vectors():
                self._add(frame)
            case Failed():
                self.fail(error_class(frame.kind)(frame.message, param=frame.param))

    def _usage(self) -> Usage:
        return Usage(prompt_tokens=self._meter.prompt_tokens)

    def _add(self, frame: Vectors) -> None:
        self._meter.device_s += frame.device_s
        self._meter.shared_s = frame.shared_s
        size = 4 * frame.dimensions
        if self._rows is None:
            self._rows = bytearray(size * len(self._tokens))
        for position, index in enumerate(frame.indices):
            self._rows[index * size : (index + 1) * size] = frame.rows[position * size : (position + 1) * size]
        self._missing -= len(frame.indices)
        if not self._missing:
            self._finish(bytes(self._rows), frame.dimensions)

    def _finish(self, rows: bytes, dimensions: int) -> None:
        self._meter.call_ended()
        self._meter.count_result()
        if self._is_score:
            scores = array("f", rows)
            self._emit(Embedded(tokens=self._tokens, scores=tuple(scores)))
        else:
            self._emit(Embedded(vectors=rows, dimensions=dimensions, tokens=self._tokens))
        self._emit(ChoiceFinished("stop"))
        self._over.set()
