"""One request at an encoder's worker: its frames become one `Embedded`, and its meter is updated."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable

from gateway.embedding import Embedded
from gateway.engines.base import Emit
from gateway.errors import GatewayError, error_class
from gateway.generation import ChoiceFinished, Meter, Started, Usage
from gateway.worker.frames import Began, Embed, Failed, FromWorker, Vectors


class EmbeddingRun:
    """Args:
    frame: what the worker got.
    is_score: the rows are scores, of one number each.
    call_s: seconds of the running device call.
    """

    def __init__(self, frame: Embed, is_score: bool, meter: Meter, emit: Emit, call_s: Callable[[], float]) -> None:
        self.id = frame.id
        self._is_score, self._meter, self._emit = is_score, meter, emit
        self._tokens = tuple(map(len, frame.ids))
        self._rows: bytearray | None = None  # of all texts; None: no row has come
        self._missing = len(frame.ids)
        self._over = asyncio.Event()
        self._error: GatewayError | None = None
        meter.prompt_tokens, meter.call_s = sum(self._tokens), call_s

    @property
    def is_over(self) -> bool:
        return self._over.is_set()

    async def finished(self) -> Usage:
        """Wait for the end. Raises the GatewayError that the request failed with."""
        await self._over.wait()
        if self._error is not None:
            raise self._error
        return Usage(prompt_tokens=self._meter.prompt_tokens)

    def device_reported(self) -> None:
        """A device call has returned. The next call, which may work for this request, runs now."""
        if self._meter.began_at is not None:
            self._meter.call_started()

    def take(self, frame: FromWorker) -> None:
        """Handle a frame of this request."""
        match frame:
            case Began():
                self._meter.begin()
                self._meter.call_started()
                self._emit(Started(prompt_tokens=self._meter.prompt_tokens))
            case Vectors():
                self._add(frame)
            case Failed():
                self.fail(error_class(frame.kind)(frame.message, param=frame.param))

    def fail(self, error: GatewayError) -> None:
        """End the request with `error`."""
        self._error = error
        self._meter.call_ended()
        self._over.set()

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
