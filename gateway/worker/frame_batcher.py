"""What a worker sends, with the tokens of one device call in one message."""

from __future__ import annotations

from collections.abc import Callable

from gateway.worker.frames import FrameBatch, FromWorker, Message, Tokens


class FrameBatcher:
    """Frames in order. Tokens wait for the next frame of another kind, or for `flush`, which is due after each call."""

    def __init__(self, emit: Callable[[Message], None]) -> None:
        self._emit = emit
        self._tokens: list[Tokens] = []

    def put(self, frame: FromWorker) -> None:
        if isinstance(frame, Tokens):
            self._tokens.append(frame)
            return
        self.flush()
        self._emit(frame)

    def flush(self) -> None:
        tokens, self._tokens = self._tokens, []
        if tokens:
            self._emit(tokens[0] if len(tokens) == 1 else FrameBatch(tokens))
