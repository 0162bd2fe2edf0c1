"""A device with an NPU: requests, its queue and its times."""

from __future__ import annotations

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fleet.cache import SLOTS, Cache, Rows
from fleet.conversations import Conversation
from gateway.engines.scripted.script import Chip

if TYPE_CHECKING:
    from fleet.router import Router
    from fleet.simulation import Fleet


@dataclass(eq=False, slots=True)
class Request:
    conversation: Conversation
    prompt: int
    answer: int
    at: float
    blocks: list[int]
    attempts: list[Attempt] = field(default_factory=list)
    first_s: float | None = None  # time to first token


@dataclass(eq=False, slots=True)
class Attempt:
    request: Request
    device: Device
    path: list[tuple[Router, int]]  # the routers that count it, and their target; the last one is next to the device
    at: float
    slot: Rows | None = None
    has_first: bool = False
    is_over: bool = False


class Device:
    """Its time is shared: with n running requests, each gets 1/n of it. `virtual` is the time that each has had.

    Args:
        batch: the number of requests that it computes in the time of one.
    """

    def __init__(self, fleet: Fleet, chip: Chip, batch: int = 1) -> None:
        self.fleet, self.chip, self.batch, self.pace, self.speed = fleet, chip, batch, 1.0, 1.0
        self.cache, self.queue = Cache(SLOTS * batch), deque[Attempt]()
        self.running: list[tuple[float, int, Attempt]] = []  # a heap; `virtual` of the next milestone
        self.active, self.virtual, self.since, self.busy_s, self.version = 0, 0.0, 0.0, 0.0, 0

    @property
    def live(self) -> list[Attempt]:
        return [each for each in (*(entry[2] for entry in self.running), *self.queue) if not each.is_over]

    def submit(self, attempt: Attempt) -> None:
        self.advance()
        self.queue.append(attempt)
        self.proceed()

    def cancel(self, attempt: Attempt) -> None:
        self.advance()
        attempt.is_over = True
        if attempt.slot is not None:
            self._release(attempt)
        self.proceed()

    def set_speed(self, speed: float) -> None:
        self.advance()
        self.speed = speed
        self.proceed()

    def crash(self) -> list[Attempt]:
        """Lose the cache and all requests; returns them."""
        lost = self.live
        self.set_speed(0.0)
        self.cache, self.queue, self.running, self.active = Cache(SLOTS * self.batch), deque(), [], 0
        return lost

    def advance(self) -> None:
        passed, self.since = self.fleet.now - self.since, self.fleet.now
        if self.active and self.speed:
            self.busy_s += passed
            self.virtual += passed * self._share

    @property
    def _share(self) -> float:
        return self.speed / max(1.0, self.active / self.batch)

    def proceed(self) -> None:
        """Fill the slots and plan the next milestone."""
        while self.queue and self.active < SLOTS * self.batch:
            attempt = self.queue.popleft()
            if not attempt.is_over:
                self._start(attempt)
        while self.running and self.running[0][2].is_over:
            heapq.heappop(self.running)
        self.version += 1
        if self.running and self.speed:
            left = max(0.0, self.running[0][0] - self.virtual)
            self.fleet.after(left / self._share, self._milestone, self.version)

    def _start(self, attempt: Attempt) -> None:
        request = attempt.request
        attempt.slot, cached = self.cache.take(request.conversation, request.prompt)
        self.fleet.seen(request, cached)
        passes = math.ceil((request.prompt - cached) / self.chip.chunk_width)
        self.active += 1
        self._push(attempt, self.virtual + passes * self.chip.chunk_s)

    def _push(self, attempt: Attempt, due: float) -> None:
        heapq.heappush(self.running, (due, next(self.fleet.numbers), attempt))

    def _release(self, attempt: Attempt) -> None:
        assert attempt.slot is not None
        self.active -= 1
        tokens = attempt.request.prompt + (attempt.request.answer if attempt.has_first else 0)
        self.cache.release(attempt.slot, tokens)

    def _milestone(self, version: int) -> None:
        if version != self.version:
            return
        self.advance()
        due, _, attempt = heapq.heappop(self.running)
        if not attempt.has_first:
            attempt.has_first = True
            self._push(attempt, due + (attempt.request.answer - 1) * self.chip.step_s)
            self.fleet.first(attempt)
        else:
            attempt.is_over = True
            self._release(attempt)
            self.fleet.ended(attempt)
        self.proceed()
