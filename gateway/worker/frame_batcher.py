"""Puts the Tokens frames of one device call into one pipe message."""

from __future__ import annotations

from collections.abc import Callable

from gateway.worker.frames import FrameBatch, FromWorker, Message, Tokens


class FrameBatcher:
    """Sends frames in order. It holds Tokens frames until a frame of another kind, or until `flush`.

    Args:
        emit: sends one message to the gateway.
    """

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
        """Send the held frames. The worker calls it after each device call."""
        tokens, self._tokens = self._tokens, []
        if tokens:
            self._emit(tokens[0] if len(tokens) == 1 else FrameBatch(tokens))
