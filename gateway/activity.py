"""What a device did: the only source of blame.

The breaker, the count of failures, the watchdog and the forecast judge a device. They may learn from device calls only,
because a client decides everything else: grammars, templates, options, prompts. So:

1. `Activity.device_call` encloses each device call. It is the one way to make a `DeviceFailed`, except that the
   supervisor makes one for a worker that ended in a device call (tests/test_house.py).
2. A worker shows in shared memory what it does: it waits, it works, or it is in a device call. `ActivityMonitor` is the
   gateway's view of that. Silence outside a device call is not the device's.
"""

from __future__ import annotations

import ctypes
import logging
import math
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import Literal

from gateway.errors import DeviceFailed, GatewayError

_log = logging.getLogger(__name__)

#: The message of a failed allocation.
NO_MEMORY = "The machine has no memory left for this model."

State = Literal["waiting", "working", "in_call"]
_STATES: tuple[State, ...] = ("waiting", "working", "in_call")


class DeviceCall:
    """One device call, as a context. An exception in it leaves the context as DeviceFailed."""

    __slots__ = ("_activity", "seconds")

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self.seconds = 0.0  # the duration, set at the end

    def __enter__(self) -> DeviceCall:
        self._activity.enter("in_call")
        self._activity.call_began_at = self._activity.clock()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.seconds = self._activity.end_call()
        self._activity.enter("working")
        if isinstance(error, Exception) and not isinstance(error, DeviceFailed):
            raise _device_failed(error) from error


class Activity:
    """What this worker does. One thread writes it.

    Args:
        context: of multiprocessing; with it, the activity is shared with a process that gets this object at its start.
        clock: monotonic seconds.
    """

    def __init__(self, context: BaseContext | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        # The number of changes of state times four, plus the state: one aligned word, which is never half written.
        self._word = ctypes.c_uint64() if context is None else context.RawValue(ctypes.c_uint64, 0)
        self.clock = clock
        self.call_began_at: float | None = None  # None: no call is running
        self._ended_s = 0.0  # in device calls that have ended

    @property
    def device_s(self) -> float:
        """Seconds in device calls until now."""
        running_s = 0.0 if self.call_began_at is None else self.clock() - self.call_began_at
        return self._ended_s + running_s

    def end_call(self) -> float:
        """Returns the seconds of the call."""
        assert self.call_began_at is not None
        seconds = self.clock() - self.call_began_at
        self.call_began_at = None
        self._ended_s += seconds
        return seconds

    def device_call(self) -> DeviceCall:
        """Enclose one device call, and nothing that can fail for another reason."""
        return DeviceCall(self)

    def check(self, best: float) -> None:
        """Raises DeviceFailed if `best`, the largest logit as the device computed it, is not a finite number."""
        if not math.isfinite(best):
            raise DeviceFailed("The model gave no usable logits: no token has a finite logit.")

    def enter(self, state: State) -> None:
        """Change to `state`. The same state again means: the next token of the same long call, or the next work."""
        self._word.value = (self._word.value & ~3) + 4 + _STATES.index(state)

    @property
    def word(self) -> int:
        """A number that is different after each change."""
        return self._word.value

    @property
    def state(self) -> State:
        return _STATES[self._word.value & 3]


class ActivityMonitor:
    """How long a worker has been in its state, as seen by the gateway. It must look to see: the first look at a state
    begins its time.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, activity: Activity, clock: Callable[[], float]) -> None:
        self._activity, self._clock = activity, clock
        self._word, self._since = activity.word, clock()

    def look(self) -> tuple[State, float]:
        """The state, and the seconds since the first look at it."""
        word, now = self._activity.word, self._clock()
        if word != self._word:
            self._word, self._since = word, now
        return _STATES[word & 3], now - self._since

    @property
    def call_s(self) -> float:
        """Seconds of the running device call; 0 if none is running."""
        state, seconds = self.look()
        return seconds if state == "in_call" else 0.0


def _device_failed(error: Exception) -> DeviceFailed:
    match error:
        case GatewayError():
            return DeviceFailed(error.message)
        case MemoryError():
            return DeviceFailed(NO_MEMORY)
    _log.error("a device call raised an unexpected exception", exc_info=error)
    return DeviceFailed(f"The device call failed: {type(error).__name__}.")
