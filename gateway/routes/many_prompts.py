"""One answer to several generations: a completion with a list of prompts."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from msgspec.structs import replace

from gateway.embedding import Embedded
from gateway.generation import Event, Finished, Generation, Route, Started, Usage
from gateway.lanes.answer import RoutedAnswer
from gateway.lanes.router import Router


class MultiPromptAnswer(AsyncIterator[Event]):
    """The answers to several generations, one after another. Has the interface of `RoutedAnswer`.

    The iteration gives a Started for each generation and one Finished with the sum of the usage. Choices are numbered
    across the generations. A long list of prompts uses one slot at a time, so that other requests get their turn, and
    the result of each prompt is the same as in a separate request. The deadline applies to the whole list.
    """

    def __init__(
        self, router: Router, generations: Sequence[Generation], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._router, self._clock = router, clock
        self._queued = deque(generations)
        longest_s = router.config.server.timeout_s
        self._deadline = clock() + min(longest_s, generations[0].timeout_s or longest_s)
        self._usage = Usage()
        self._first_choice = 0  # the number of the first choice of the generation that runs
        self._next_first_choice = 0
        self.is_over = False
        self._answer = self._route()

    @property
    def model(self) -> str:
        return self._answer.model

    @property
    def predicted_ttft_s(self) -> float | None:
        """Of the generation that runs."""
        return self._answer.predicted_ttft_s

    @property
    def dropped_messages(self) -> int:
        """0: the prompts are texts."""
        return self._answer.dropped_messages

    @property
    def fallback_cause(self) -> str:
        """Of the generation that runs."""
        return self._answer.fallback_cause

    @property
    def route(self) -> Route:
        """Of the generation that runs."""
        return self._answer.route

    async def open(self) -> None:
        """Return when a device has begun with the first generation. Raises its refusal."""
        await self._answer.open()

    async def __anext__(self) -> Event:
        if self.is_over:
            raise StopAsyncIteration
        while (event := self._numbered(await anext(self._answer))) is None:
            pass
        return event

    def poll(self) -> Event | None:
        """See `RoutedAnswer`."""
        event = None if self.is_over else self._answer.poll()
        return None if event is None else self._numbered(event)

    def _numbered(self, event: Event) -> Event | None:
        """The event with the number of its choice. None: the next generation begins."""
        match event:
            case Finished():
                self._usage = _sum(self._usage, event.usage)
                if not self._queued:
                    self.is_over = True
                    return Finished(usage=self._usage)
                self._answer = self._route()
                return None
            case Started() | Embedded():
                return event
            case _:
                return replace(event, choice=self._first_choice + event.choice)

    async def aclose(self) -> None:
        self.is_over = True
        await self._answer.aclose()

    def _route(self) -> RoutedAnswer:
        generation = self._queued.popleft()
        self._first_choice, self._next_first_choice = self._next_first_choice, self._next_first_choice + generation.n
        return self._router.route(replace(generation, timeout_s=self._deadline - self._clock()))


def _sum(a: Usage, b: Usage) -> Usage:
    return Usage(**{name: getattr(a, name) + getattr(b, name) for name in Usage.__struct_fields__})
