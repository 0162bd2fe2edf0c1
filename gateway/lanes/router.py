"""From the model's name in a request to the lane that answers it.

1. A request moves on to the fallback when its lane refuses it or fails, until the first event with content is out;
   from then on the answer is that lane's. What is wrong with the request itself is never retried elsewhere.
2. When nobody answers, the client hears what the model it asked for said; what the fallbacks said is in the log.
3. A first-token limit from the configuration holds only where there is a fallback to move to; one from the client
   holds everywhere, and starts anew at each lane.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import NoReturn, cast

from msgspec import Struct
from msgspec.structs import replace

from gateway import logs
from gateway.config import Config, Defaults
from gateway.engines.base import TextTools
from gateway.errors import GatewayError, InvalidRequest, ModelNotFound
from gateway.generation import ChoiceFinished, Event, Generation, Meter
from gateway.lanes.lane import Lane, LaneStatus

BACKGROUND_SUFFIX = ":background"

_log = logging.getLogger(__name__)


class Route(Struct, frozen=True):
    """Where a model name leads."""

    model: str
    background: bool = False


class ModelInfo(Struct, frozen=True, kw_only=True):
    """A row of the model list."""

    name: str
    aliases: tuple[str, ...]
    status: LaneStatus


class RoutedAnswer:
    """One opened request.

    `model` and `meter` are those of the lane that answers: final once `events` has yielded. `events` yields Started,
    deltas, one ChoiceFinished per choice and Finished, or raises a GatewayError; whoever opened it closes it.
    """

    def __init__(
        self, generation: Generation, lanes: list[Lane], timeout_s: float, clock: Callable[[], float], log_prompt: bool
    ) -> None:
        self.model = lanes[0].name
        self.meter = Meter()
        self.events = self._answer()
        self._generation = generation
        self._lanes = deque(lanes)
        self._clock = clock
        self._opened_at = clock()
        self._deadline = self._opened_at + timeout_s
        self._refusals: list[GatewayError] = []
        self._line = logs.RequestLine(id=generation.id, requested=generation.model)
        self._log_prompt = log_prompt
        self._has_content = False

    async def aclose(self) -> None:
        """Cancel what is still running; no harm when all is over."""
        await self.events.aclose()

    async def _answer(self) -> AsyncGenerator[Event, None]:
        """Yields the first lane's first event as a sign that it is open, and then everything from the beginning."""
        self._line.ending = "cancelled"
        is_open = False
        try:
            while True:
                try:
                    async with aclosing(self._next_stream()) as stream:
                        started = await anext(stream)
                        self._line.queue_s = self._clock() - self._opened_at
                        if not is_open:
                            is_open = True
                            yield started
                        async for event in stream:
                            if not self._has_content:
                                self._first_content()
                                yield started
                            self._note(event)
                            yield event
                    return
                except GatewayError as error:
                    self._move_on(error)
        finally:
            self._log_line()

    def _next_stream(self) -> AsyncGenerator[Event, None]:
        lane = self._lanes.popleft()
        self.model = lane.name
        self.meter = Meter()
        return lane.stream(self._for_lane(lane), self.meter)

    def _for_lane(self, lane: Lane) -> Generation:
        ttft_timeout_s = self._generation.ttft_timeout_s
        if ttft_timeout_s is None and self._lanes:
            ttft_timeout_s = lane.config.ttft_timeout_s
        return replace(self._generation, timeout_s=self._deadline - self._clock(), ttft_timeout_s=ttft_timeout_s)

    def _move_on(self, error: GatewayError) -> None:
        """Accept the refusal if there is another lane to try, else raise what the client shall hear."""
        self._refusals.append(error)
        if self._has_content or self._clock() >= self._deadline:
            self._end(error)
        own_fault = isinstance(error, InvalidRequest) and len(self._refusals) == 1
        if own_fault or not self._lanes:
            self._end(self._refusals[0])
        self._line.why = self._line.why or error.code or error.type
        _log.debug("%s: %s refused: %s", self._generation.id, self.model, error.message)

    def _end(self, error: GatewayError) -> NoReturn:
        self._line.ending = error.code or error.type
        raise error

    def _first_content(self) -> None:
        self._has_content = True
        self._line.ttft_s = self._clock() - self._opened_at

    def _note(self, event: Event) -> None:
        if isinstance(event, ChoiceFinished):
            self._line.ending = event.reason

    def _log_line(self) -> None:
        line = self._line
        line.served = self.model
        line.prompt_tokens = self.meter.prompt_tokens
        line.cached_tokens = self.meter.cached_tokens
        line.completion_tokens = self.meter.completion_tokens
        line.total_s = self._clock() - self._opened_at
        _log.info("%s", line)
        if self._log_prompt:
            _log.info("%s  %s", line.id, logs.prompt_text(self._generation.prompt))


class Router:
    """Every lane of the gateway, by name.

    Args:
        lanes: one for each of `config.models`, by its name; not yet started.
        clock: monotonic seconds, the lanes' own.
    """

    def __init__(self, config: Config, lanes: Mapping[str, Lane], clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self.lanes = dict(lanes)
        self._clock = clock
        aliases = {alias: name for name, model in config.models.items() for alias in model.aliases}
        self._names = aliases | {name: name for name in self.lanes}

    async def start(self) -> None:
        """Begin to load every model, in the background and at once; `tried` waits for it."""
        for lane in self.lanes.values():
            lane.start()

    async def tried(self) -> None:
        """Wait until every model is ready or has failed to load once."""
        await asyncio.gather(*(lane.tried() for lane in self.lanes.values()))

    async def aclose(self) -> None:
        """End every request and every engine."""
        await asyncio.gather(*(lane.aclose() for lane in self.lanes.values()))

    def lookup(self, name: str | None) -> Route:
        """The model that a name or alias means, `NAME:background` included; ModelNotFound lists what there is."""
        asked = name or ""
        if asked in self._names:
            return Route(self._names[asked])
        base = asked.removesuffix(BACKGROUND_SUFFIX)
        if base in self._names:
            return Route(self._names[base], background=True)
        if self.config.default_model is not None:
            return Route(self.config.default_model, background=base != asked)
        what = f"The model '{logs.printable(asked)}' does not exist" if asked else "The request names no model"
        error = ModelNotFound(f"{what}; there is {', '.join(self.lanes)}.", param="model")
        error.requested = asked
        raise error

    def defaults_for(self, name: str | None) -> Defaults:
        """What a request for `name` gets that does not say."""
        return self.config.defaults_for(self.lookup(name).model)

    async def open(self, generation: Generation) -> RoutedAnswer:
        """The answer to a request, once the device has begun with it; every refusal is raised from here."""
        route = self.lookup(generation.model)
        longest_s = self.config.server.timeout_s
        answer = RoutedAnswer(
            replace(generation, background=generation.background or route.background),
            self._chain(route.model),
            longest_s if generation.timeout_s is None else min(generation.timeout_s, longest_s),
            self._clock,
            self.config.server.log_prompts,
        )
        await anext(answer.events)
        return answer

    def models(self) -> list[ModelInfo]:
        """Every model in the order of the configuration."""
        return [self.model(name) for name in self.lanes]

    def model(self, name: str) -> ModelInfo:
        """One model, by name or alias; ModelNotFound."""
        lane = self.lanes[self.lookup(name).model]
        return ModelInfo(name=lane.name, aliases=lane.config.aliases, status=lane.status)

    def tools(self, name: str | None) -> TextTools:
        """The model's tokenizer and template; InvalidRequest for a model that keeps them elsewhere."""
        lane = self.lanes[self.lookup(name).model]
        if not hasattr(lane.engine, "encode"):
            raise InvalidRequest(f"The tokenizer of {lane.name} is not on this machine.", param="model")
        return cast(TextTools, lane.engine)

    def status(self) -> list[LaneStatus]:
        """Every lane at this moment, for `/readyz`."""
        return [lane.status for lane in self.lanes.values()]

    def _chain(self, name: str) -> list[Lane]:
        """The lanes to try, in order: the model, its fallback, and so on."""
        chain: list[Lane] = []
        step: str | None = name
        while step is not None and self.lanes[step] not in chain:
            chain.append(self.lanes[step])
            step = self.lanes[step].config.fallback
        return chain
