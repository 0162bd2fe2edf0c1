"""Reports callbacks that block the event loop. For tests and for asyncio's debug mode; it costs about 2 % of a request.

A callback is blocking if it uses more than MAX_CPU_S of processor time, or takes more than MAX_WALL_S. The processor
time of the loop's thread does not depend on other work of the machine, but does not see a blocking system call. The
time of the garbage collector is not counted: it depends on the size of the heap, not on the callback. A timer of
asyncio itself is not reported: it has no work. A virtual machine was stopped in it, which counts as processor time.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any

MAX_CPU_S = 0.05
MAX_WALL_S = 30.0  # for a call that waits; a machine can take the processor away for seconds

Report = Callable[[str, CodeType | None], None]


@contextmanager
def loop_watch(report: Report) -> Iterator[None]:
    """Watch all event loops of the process.

    Args:
        report: called with a description of each blocking callback, and with the code of the callback or of the
            task's coroutine, if it is Python code. It is called on the thread of the loop.
    """
    plain = asyncio.Handle._run
    collector = _CollectorTime()

    def watched(handle: asyncio.Handle) -> None:
        collected, started, cpu = collector.seconds(), time.perf_counter(), time.thread_time()
        plain(handle)
        cpu_s = time.thread_time() - cpu
        wall_s = time.perf_counter() - started
        if (cpu_s > MAX_CPU_S or wall_s > MAX_WALL_S) and not _is_plain_timer(handle):
            cpu_s -= collector.seconds() - collected
            if cpu_s > MAX_CPU_S or wall_s > MAX_WALL_S:
                report(f"{_described(handle)} blocked the event loop: {_figures(cpu_s, wall_s)}", _code(handle))

    asyncio.Handle._run = watched  # type: ignore[method-assign,assignment]
    gc.callbacks.append(collector)
    try:
        yield
    finally:
        gc.callbacks.remove(collector)
        asyncio.Handle._run = plain  # type: ignore[method-assign]


class _CollectorTime(threading.local):
    """The processor time that the garbage collector has used in this thread."""

    def __init__(self) -> None:
        self._seconds = self._started = 0.0

    def seconds(self) -> float:
        return self._seconds

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started = time.thread_time()
        else:
            self._seconds += time.thread_time() - self._started


def _figures(cpu_s: float, wall_s: float) -> str:
    return f"{1000 * cpu_s:.0f} ms of processor time, {1000 * wall_s:.0f} ms"


def _described(handle: asyncio.Handle) -> str:
    """The callback, or the coroutines of the task from the outside to where it waits now."""
    if (task := _task(handle)) is None:
        return repr(handle)
    chain: list[str] = []
    inner: Any = task.get_coro()
    while (code := _code_of(inner)) is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "ag_frame", None)
        chain.append(f"{code.co_qualname}:{frame.f_lineno if frame else 'end'}")
        inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)
    return " > ".join(chain)


def _code(handle: asyncio.Handle) -> CodeType | None:
    if (task := _task(handle)) is None:
        return getattr(handle._callback, "__code__", None)  # type: ignore[attr-defined]
    return _code_of(task.get_coro())


def _is_plain_timer(handle: asyncio.Handle) -> bool:
    """The end of `asyncio.sleep`: it only sets a future."""
    return getattr(handle._callback, "__name__", "") == "_set_result_unless_cancelled"  # type: ignore[attr-defined]


def _task(handle: asyncio.Handle) -> asyncio.Task[Any] | None:
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    return owner if isinstance(owner, asyncio.Task) else None


def _code_of(awaitable: Any) -> CodeType | None:
    return getattr(awaitable, "cr_code", None) or getattr(awaitable, "ag_code", None)
