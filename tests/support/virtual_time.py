"""An event loop in virtual time: if no task can run, its clock jumps to the next timer, so waiting takes no real time.

    @in_virtual_time
    async def test_something(): ...

`asyncio.sleep`, `asyncio.timeout` and `loop.time()` use this clock. A test that waits without a timer fails at once.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

_THREAD_S = 60.0  # real seconds, for a thread that the loop waits for at its end


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.jumps = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if events := super().select(0):
            return events
        if timeout is None:
            if events := super().select(_THREAD_S):
                return events
            raise RuntimeError("all tasks wait and no timer is set, so the test would hang")
        self.now += max(0.0, timeout)
        self.jumps += timeout > 0
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now

    @property
    def wake_ups(self) -> int:
        """How often a timer has ended a wait."""
        return self._clock.jumps


class Inline(ThreadPoolExecutor):
    """Runs the work at once, because virtual time does not wait for threads."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*args, **options))
        except Exception as error:
            done.set_exception(error)
        return done


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def now() -> float:
    """The time of the running loop. Pass this function as the clock of the code under test."""
    return asyncio.get_running_loop().time()
