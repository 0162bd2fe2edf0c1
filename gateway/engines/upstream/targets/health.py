"""Whether a target gets requests: a small circuit breaker with backoff. It has no task and no connection.

    up --failed--> down --listed--> trial --answered--> up
                     ^                |
                     +-----failed-----+

A list of models does not prove that the target answers. A short request of the gateway does (pool.py), so that no
request of a user is the test. The pause between two probes doubles until a whole answer has succeeded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

State = Literal["up", "trial", "busy", "down"]

FIRST_PAUSE_S, MOST_PAUSE_S = 0.5, 30.0
_MOST_WAIT_S, _MOST_BUSY_S = 60.0, 5.0  # a server may require more; the load of one that is busy changes fast


class Health:
    """Args:
    clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.reason = ""  # why it is not up, in a few words without a text of the server
        self.until = 0.0  # when the next probe is due, or when a busy target gets requests again
        self.is_confirmed = False  # down, and a probe has failed since
        self._clock = clock
        self._state: State = "up"
        self._pause_s = 0.0

    @property
    def state(self) -> State:
        if self._state == "busy" and self._clock() >= self.until:
            self._change("up")
        return self._state

    @property
    def is_out(self) -> bool:
        """It has failed, and no answer since then."""
        return self._state in ("down", "trial")

    def failed(self, reason: str, wait_s: float = 0.0) -> bool:
        """A request failed, and the target is the cause. True if it was not down already.

        Args:
            wait_s: what the target itself requires.
        """
        if self._state == "down":
            return False
        self._pause(reason, wait_s)
        return True

    def probe_failed(self, reason: str) -> None:
        self._pause(reason, 0.0)
        self.is_confirmed = True

    def listed(self) -> None:
        """The target answers the request for its models."""
        if self._state == "down":
            self._change("trial", self.reason)

    def busy(self, reason: str, wait_s: float) -> None:
        """The target refused a request for its load. It gets none for `wait_s` seconds."""
        if self._state != "down":
            self._change("busy", reason)
            self.until = self._clock() + min(wait_s, _MOST_BUSY_S)

    def answered(self) -> bool:
        """A request got its first content. True if the target was down or on trial."""
        was_out = self._state in ("down", "trial")
        if self._state != "up":
            self._change("up")
        return was_out

    def completed(self) -> None:
        """A request got its whole answer: the next pause is the first one again."""
        self._pause_s = 0.0

    def _pause(self, reason: str, wait_s: float) -> None:
        self._pause_s = min(2 * self._pause_s or FIRST_PAUSE_S, MOST_PAUSE_S)
        self.until = self._clock() + max(self._pause_s, min(wait_s, _MOST_WAIT_S))
        self._change("down", reason)

    def _change(self, state: State, reason: str = "") -> None:
        self._state, self.reason, self.is_confirmed = state, reason, False
