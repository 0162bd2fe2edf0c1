"""Several generations answered as one: what a completion with a list of prompts is."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from msgspec.structs import replace

from gateway.generation import Event, Finished, Generation, Meter, Started, Usage
from gateway.lanes.router import RoutedAnswer, Router


class MultiPromptAnswer:
    """The answers to several generations, one after another, as one answer. Has the interface of `RoutedAnswer`.

    `events` yields a Started for each generation and one Finished with the sum of the usage. Choices are numbered
    across the generations. A long list of prompts uses one slot at a time, so that other requests get their turn, and
    the result of each prompt is the same as in a request of its own. The deadline applies to the whole list.
    """

    def __init__(
        self, router: Router, generations: Sequence[Generation], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.events = self._answer_all()
        self._router, self._generations, self._clock = router, generations, clock
        longest_s = router.config.server.timeout_s
        self._deadline = clock() + min(longest_s, generations[0].timeout_s or longest_s)
        self._answer: RoutedAnswer | None = None

    @property
    def model(self) -> str:
        assert self._answer is not None  # there is none before `open_all` has returned
        return self._answer.model

    @property
    def meter(self) -> Meter:
        """Of the generation that is being answered."""
        assert self._answer is not None
        return self._answer.meter

    async def _answer_all(self) -> AsyncGenerator[Event, None]:
        """Yields one event more than is told, first: a sign that the first generation is open."""
        usage, choices = Usage(), 0
        for number, generation in enumerate(self._generations):
            left_s = self._deadline - self._clock()
            self._answer = await self._router.open(replace(generation, timeout_s=left_s))
            async with aclosing(self._answer.events) as events:
                if number == 0:
                    yield Started(prompt_tokens=0)
                async for event in events:
                    match event:
                        case Started():
                            yield event
                        case Finished():
                            usage = _sum(usage, event.usage)
                        case _:
                            yield replace(event, choice=choices + event.choice)
            choices += generation.n
        yield Finished(usage=usage)


async def open_all(router: Router, generations: Sequence[Generation]) -> MultiPromptAnswer:
    """The answers to all of them, once the device has begun with the first; every refusal of it is raised from here."""
    answers = MultiPromptAnswer(router, generations)
    await anext(answers.events)
    return answers


def _sum(a: Usage, b: Usage) -> Usage:
    return Usage(**{name: getattr(a, name) + getattr(b, name) for name in Usage.__struct_fields__})
