"""A request that a lane has accepted, on its way: what it is, what it holds and how far it has come."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.engines.base import Plan
from gateway.errors import GatewayError
from gateway.generation import Event, Generation, Meter, Timings
from gateway.lanes.admission import Ticket
from gateway.lanes.breaker import Permit

_BUFFERED_EVENTS = 4096  # between the device and its reader: about 1 MB at worst


class Job:
    """One accepted job.

    Args:
        timeout_s: its deadline when `generation` brings none.
        clock: monotonic seconds, the one its meter and its turn are read from.
    """

    __slots__ = (
        "_clock",
        "_timeout_s",
        "accepted_at",
        "concluded",
        "events",
        "first_at",
        "generation",
        "meter",
        "others",
        "permit",
        "plan",
        "ticket",
    )

    ticket: Ticket  # it is in the line from the moment it exists

    def __init__(
        self, generation: Generation, meter: Meter, permit: Permit, timeout_s: float, clock: Callable[[], float]
    ) -> None:
        self.generation = generation
        self.meter = meter
        self.permit = permit
        self.plan: Plan | None = None  # not known yet, or not to be known
        self.others = 0  # in progress when it began
        self.events: asyncio.Queue[Event | GatewayError] = asyncio.Queue(_BUFFERED_EVENTS)
        self.accepted_at = clock()
        self.first_at: float | None = None  # when it had its first token
        self.concluded = False
        self._timeout_s = timeout_s
        self._clock = clock

    @property
    def age_s(self) -> float:
        """Seconds since it was accepted."""
        return self._clock() - self.accepted_at

    @property
    def deadline_s(self) -> float:
        """Seconds it may take in all, from when it was accepted."""
        return self._timeout_s if self.generation.timeout_s is None else self.generation.timeout_s

    @property
    def first_deadline_s(self) -> float:
        """Seconds to the first deadline: that of the first token where there is one."""
        first_s = self.generation.ttft_timeout_s
        return self.deadline_s if first_s is None else min(first_s, self.deadline_s)

    def got_first_token(self) -> None:
        self.first_at = self._clock()

    def timings(self, engine_queue_s: float = 0.0) -> Timings:
        """Where its time went until now; `engine_queue_s` is what the engine let it wait."""
        now = self._clock()
        entered_at = now if self.ticket.entered_at is None else self.ticket.entered_at
        return Timings(
            queue_s=entered_at - self.accepted_at + engine_queue_s,
            ttft_s=0.0 if self.first_at is None else self.first_at - self.accepted_at,
            device_s=self.meter.device_s,
            total_s=now - self.accepted_at,
        )
