"""Limits the log lines about the same cause to one a minute, so that a program that repeats a mistake floods no log."""

from __future__ import annotations

import time
from collections.abc import Callable

_PERIOD_S = 60.0
_MAX_CAUSES = 100  # that are known at once; all others are one cause
_OTHERS = ""


class Throttle:
    """Decides which lines are written. Used on the event loop only.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._causes: dict[str, tuple[float, int]] = {}  # when its last line was written, and how many were not since

    def suffix(self, cause: str) -> str | None:
        """None: write no line now. Else write one, with this at its end: how many lines were not written."""
        now = self._clock()
        if cause not in self._causes and len(self._causes) >= _MAX_CAUSES:
            self._forget_old(now)
            if len(self._causes) >= _MAX_CAUSES:
                cause = _OTHERS
        written_at, missing = self._causes.get(cause, (now - _PERIOD_S, 0))
        if now - written_at < _PERIOD_S:
            self._causes[cause] = (written_at, missing + 1)
            return None
        self._causes[cause] = (now, 0)
        return f" ({missing} more of this kind since the last line)" if missing else ""

    def _forget_old(self, now: float) -> None:
        self._causes = {
            cause: (written_at, missing)
            for cause, (written_at, missing) in self._causes.items()
            if now - written_at < _PERIOD_S
        }
