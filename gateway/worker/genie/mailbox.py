"""The frames on their way from the pipe to the Genie loop, and which requests are cancelled."""

from __future__ import annotations

from queue import SimpleQueue

from gateway.worker.frames import Cancel, Shutdown, ToWorker


class Mailbox:
    """Passes frames from the thread that receives them to the thread that runs queries."""

    def __init__(self) -> None:
        self._frames: SimpleQueue[ToWorker] = SimpleQueue()
        self._cancelled: set[int] = set()
        self._closing = False

    def deliver(self, frame: ToWorker) -> None:
        """Add a frame. Any thread may call it."""
        match frame:
            case Cancel(id=id):
                self._cancelled.add(id)
            case Shutdown():
                self._closing = True
        self._frames.put(frame)

    @property
    def is_empty(self) -> bool:
        return self._frames.empty()

    def get(self, timeout_s: float | None = None) -> ToWorker:
        """Wait for the next frame. Raises queue.Empty after `timeout_s`."""
        frame = self._frames.get(timeout=timeout_s)
        if isinstance(frame, Cancel):
            self._cancelled.discard(frame.id)
        return frame

    def is_cancelled(self, id: int) -> bool:
        """True as soon as the Cancel frame is delivered, also before `get` returns it."""
        return self._closing or id in self._cancelled
