"""Hedging: a request whose first content is later than usual is sent to a second target too. The first content wins.

1. "Later than usual": after the 95th percentile of the times to first content of that target, from its last requests. A
   target that has not answered enough requests, as one that hangs from the start, has the longest of the others' times.
2. At most one request in ten gets a second target, so a cluster that is slow as a whole is not doubled in load.
3. What loses is closed. The time that it had waited counts as its time to first content, because it would have taken
   at least as long. A target that loses three times in a row without an answer in between does not answer.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from gateway.errors import GatewayError

ENOUGH, WINDOW = 20, 200  # times to first content: before the first hedge, and that are kept
PERCENTILE = 0.95
SHARE = 0.1  # of the requests may get a second target
MOST_CREDIT = 10.0  # requests in a row that may, after many that did not
MOST_LOSSES = 3
OVERLOAD = 2.0  # times the requests of the first target for its weight: more, and a target gets no second attempt
LOOK_S = 1.0  # until a late request looks again for a target, or for a measured time


class FirstTimes:
    """The times to first content of one target, and its lost races."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._losses = 0  # since its last answer

    @property
    def late_s(self) -> float | None:
        """The 95th percentile; None before there are enough times."""
        count = len(self._seconds)
        return sorted(self._seconds)[math.ceil(PERCENTILE * count) - 1] if count >= ENOUGH else None

    def answered(self, seconds: float) -> None:
        self._seconds.append(seconds)
        self._losses = 0

    def lost(self, seconds: float) -> bool:
        """Another target was faster. True if this one does not seem to answer at all."""
        self._seconds.append(seconds)
        self._losses += 1
        return self._losses >= MOST_LOSSES


class Hedging:
    """What decides when a request gets a second target. One for each model.

    Args:
        targets: any objects, one for each of them.
    """

    def __init__(self, targets: Iterable[Hashable]) -> None:
        self._times = {target: FirstTimes() for target in targets}
        self._credit = 0.0  # requests that may get a second target

    def earn(self) -> None:
        """Call it once for each attempt."""
        self._credit = min(MOST_CREDIT, self._credit + SHARE)

    def late_s(self, target: Hashable) -> float | None:
        """After which time a request to `target` is late; None: not known yet."""
        own = self._times[target].late_s
        return max(filter(None, (times.late_s for times in self._times.values())), default=None) if own is None else own

    def has_credit(self) -> bool:
        return self._credit > 1 - 1e-9  # ten times 0.1 is less than 1

    def spend(self) -> None:
        """A request gets a second target."""
        self._credit -= 1

    def answered(self, target: Hashable, seconds: float) -> None:
        """Its first content came after this time."""
        self._times[target].answered(seconds)

    def lost(self, target: Hashable, seconds: float) -> bool:
        """Another target was faster. True if this one does not seem to answer at all."""
        return self._times[target].lost(seconds)


class Racer(Protocol):
    """An attempt, see attempt.py."""

    async def __aenter__(self) -> Any: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def first(self) -> Coroutine[Any, Any, None]:
        """Return when the first content is there. Raises GatewayError."""


R = TypeVar("R", bound=Racer)


class Race(Generic[R]):
    """One attempt, and a second one if the first is late.

        async with Race(attempt, late_s, another, is_final) as race:
            winner = await race.winner()
            ...  # read the rest of it

    Args:
        late_s: gives the time after which the second attempt begins, in seconds; None if it is not known yet. Without
            this function there is no second attempt.
        another: makes the second attempt; None if no target may get it now. Later it is called again.
        is_final: true for an error after which no other target can answer the request.
    """

    def __init__(
        self,
        attempt: R,
        late_s: Callable[[], float | None] | None,
        another: Callable[[], R | None],
        is_final: Callable[[GatewayError], bool],
    ) -> None:
        self.errors: dict[R, GatewayError] = {}
        self.lost: R | None = None  # had no content when the winner had it
        self.waited_s: dict[R, float] = {}  # of the winner and of `lost`
        self.is_hedged = False
        self._late_s, self._another, self._is_final = late_s, another, is_final
        self._clock = asyncio.get_running_loop().time
        self.first = attempt
        self._open: dict[R, float] = {}  # attempts, and when they began
        self._tasks: dict[asyncio.Task[None], R] = {}  # that wait for the first content

    async def __aenter__(self) -> Self:
        await self._enter(self.first)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close(*self._open)

    async def winner(self) -> R | None:
        """The attempt whose content came first. None: all have failed. The connection of the other one is closed."""
        if self._late_s is None:
            winner = self.first if await self._succeeds(self.first, self.first.first()) else None
        else:
            winner = await self._of_two(self._late_s)
        self.lost = next(iter(self._tasks.values()), None) if winner else None
        self.waited_s = {attempt: self._clock() - began for attempt, began in self._open.items()}
        await self._close(*self._tasks.values())
        return winner

    async def _of_two(self, late_s: Callable[[], float | None]) -> R | None:
        self._start(self.first)
        began, pause_s = self._clock(), 0.0
        while not (await asyncio.wait(self._tasks, timeout=pause_s))[0]:
            waited_s, limit_s = self._clock() - began, late_s()
            is_late = limit_s is not None and waited_s >= limit_s
            if is_late and (second := self._another()) is not None:
                self.is_hedged = True
                await self._enter(second)
                self._start(second)
                break
            pause_s = LOOK_S if limit_s is None or is_late else limit_s - waited_s
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in self._tasks if task in done]:  # the first attempt first
                attempt = self._tasks.pop(task)
                if await self._succeeds(attempt, task):
                    return attempt
                if self._is_final(self.errors[attempt]):
                    return None
        return None

    async def _succeeds(self, attempt: R, first: Awaitable[None]) -> bool:
        try:
            await first
        except GatewayError as error:
            self.errors[attempt] = error
            return False
        return True

    async def _enter(self, attempt: R) -> None:
        await attempt.__aenter__()
        self._open[attempt] = self._clock()

    def _start(self, attempt: R) -> None:
        self._tasks[asyncio.create_task(attempt.first())] = attempt

    async def _close(self, *attempts: R) -> None:
        tasks = [task for task, attempt in self._tasks.items() if attempt in attempts]
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:  # also if this is cancelled; the tasks have ended all the same
            for task in tasks:
                del self._tasks[task]
            for attempt in attempts:
                del self._open[attempt]
                await attempt.__aexit__(None, None, None)
