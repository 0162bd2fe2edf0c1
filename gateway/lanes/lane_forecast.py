"""The forecasts for the requests of one lane: what Forecast says of each, where it stands in the line and beside whom.

A request learns here when its first token will come, and is refused when that is too late; the line learns when each
will give up its place; and Forecast learns from how they went.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.engines.base import Engine, Plan
from gateway.errors import FirstTokenTooLate, GatewayError, QueueFull
from gateway.lanes.admission import Slots
from gateway.lanes.forecast import Forecast
from gateway.lanes.job import Job


class LaneForecast:
    """One lane's.

    Args:
        name: the model, for the words of a refusal.
        clock: monotonic seconds, the one the requests' meters are read from.
    """

    def __init__(self, name: str, engine: Engine, slots: Slots, clock: Callable[[], float]) -> None:
        self._name = name
        self._engine = engine
        self._slots = slots
        self._forecast = Forecast(clock)
        self._clock = clock

    def check_first_token(self, job: Job) -> None:
        """Predict the first token into the meter; FirstTokenTooLate or QueueFull when it would come too late."""
        plan, limit_s = job.plan, job.generation.ttft_timeout_s
        ready_s = job.age_s + self._slots.wait_s(job.ticket)
        own_s = None if plan is None else self._forecast.first_token_s(plan, self._slots.others(job.ticket))
        if own_s is not None:
            job.meter.predicted_ttft_s = ready_s + own_s
        expected_s = ready_s + (own_s or 0.0)
        if limit_s is not None and expected_s > limit_s and self._forecast.refuses():
            raise self._refusal(plan, expected_s, limit_s)

    def remaining_s(self, job: Job) -> float | None:
        """Seconds until the request will have given up its place, from when it gets it or from now."""
        if job.plan is None:
            return None
        others = self._slots.others(job.ticket)
        return self._forecast.remaining_s(job.plan, job.meter, self._most_tokens(job), others)

    def began(self, job: Job) -> None:
        """Keep in mind beside how many a request begins that has got its place."""
        job.others = self._slots.others(job.ticket)

    def first_token(self, job: Job) -> None:
        """Learn from a request that has its first token."""
        if job.plan is not None and job.ticket.entered_at is not None:
            self._forecast.first_token(job.plan, job.meter, job.ticket.entered_at, job.others)

    def gave_up(self, job: Job) -> None:
        """Learn from a request whose deadline has passed, if it had its place and no first token."""
        if job.first_at is None and job.plan is not None and job.ticket.entered_at is not None:
            held_s = self._clock() - job.ticket.entered_at
            self._forecast.gave_up(job.plan, held_s, job.others)

    def finished(self, job: Job) -> None:
        """Learn from a request that has ended by itself."""
        self._forecast.finished(job.meter, self._most_tokens(job))

    def _refusal(self, plan: Plan | None, expected_s: float, limit_s: float) -> GatewayError:
        wanted = f"the first token was wanted within {limit_s:g} s"
        alone_s = None if plan is None else self._forecast.first_token_s(plan, others=0)
        if plan is not None and alone_s is not None and alone_s > limit_s:
            tokens = f"the {plan.computed_tokens} new tokens of this prompt"
            return FirstTokenTooLate(f"{self._name} needs about {alone_s:.1f} s for {tokens}; {wanted}.")
        busy = f"{self._name} is busy and would begin its answer in about {expected_s:.1f} s"
        return QueueFull(f"{busy}; {wanted}.", retry_after_s=expected_s - limit_s)

    def _most_tokens(self, job: Job) -> int:
        plan, generation = job.plan, job.generation
        room = self._engine.status.context_length - (plan.prompt_tokens if plan else 0)
        return generation.n * max(1, min(generation.max_tokens, room))
