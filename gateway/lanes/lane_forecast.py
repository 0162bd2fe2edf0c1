"""The forecast of one lane: it connects `Forecast` with the admission queue and the jobs.

It predicts the time to first token of a job and refuses a job that would be too late. It predicts for the admission
queue when each job frees its slot. Jobs that run are the measurements.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from gateway.engines.base import Plan
from gateway.errors import FirstTokenTooLate, GatewayError, QueueFull
from gateway.lanes.admission import AdmissionQueue
from gateway.lanes.forecast import Forecast
from gateway.lanes.job import Job

_ANSWERS, _SLOW_SHARE = 10, 0.5  # of the published speed, after this number of answers
_SLOW_ADVICE = "connect the power supply, choose the best performance in Windows, and close programs that use the NPU"

_log = logging.getLogger(__name__)


class LaneForecast:
    """Args:
    name: of the model, for messages.
    queue: the lane's admission queue.
    clock: seconds, monotonic; the clock of the jobs' meters.
    """

    def __init__(self, name: str, queue: AdmissionQueue, clock: Callable[[], float]) -> None:
        self._name = name
        self._queue = queue
        self._answers = 0
        self._forecast = Forecast(clock)

    def check_first_token(self, job: Job) -> None:
        """Predict the time to first token. Raises FirstTokenTooLate or QueueFull if it is over the job's limit."""
        plan, limit_s = job.plan, job.generation.ttft_timeout_s
        slot_s = job.age_s + self._queue.wait_s(job.ticket)
        own_s = None if plan is None else self._forecast.first_token_s(plan, self._queue.others(job.ticket))
        if own_s is not None:
            job.predicted_ttft_s = slot_s + own_s
        expected_s = slot_s + (own_s or 0.0)
        if limit_s is not None and expected_s > limit_s and self._forecast.should_refuse():
            raise self._refusal(plan, expected_s, limit_s)

    def eviction(self, job: Job) -> QueueFull:
        """The error of a job that has lost its position in the queue to another client."""
        wait_s = self._queue.expected_wait_s(job.generation.background, job.generation.client)
        full = f"{self._name} has a full queue, and another client needed a position in it"
        return QueueFull(f"{full}. Send fewer requests at once, or try again later.", retry_after_s=wait_s)

    def remaining_s(self, job: Job) -> float | None:
        """Predicted seconds that the job will still hold its slot. None before the first measurement."""
        if job.plan is None:
            return None
        others = self._queue.others(job.ticket)
        return self._forecast.remaining_s(job.plan, job.meter, _max_tokens(job, job.plan), others)

    @property
    def tokens_per_s(self) -> float | None:
        """See Forecast."""
        return self._forecast.tokens_per_s

    def left_s(self) -> float:
        """Expected seconds until the last of the requests that are here has ended; 0 before the first measurement."""
        is_busy = self._queue.running or self._queue.waiting
        return self._queue.expected_wait_s(background=True) + (self._queue.mean_service_s or 0.0) if is_busy else 0.0

    def record_start(self, job: Job) -> None:
        """Record how many other requests are running when this one starts."""
        job.others = self._queue.others(job.ticket)

    def learn_first_token(self, job: Job) -> None:
        """Learn from a job that has its first token."""
        if job.plan is not None and job.ticket.admitted_at is not None:
            self._forecast.learn_first_token(job.plan, job.meter, job.others)

    def learn_timeout(self, job: Job) -> None:
        """Learn from a job whose time limit has passed without a first token."""
        if job.plan is not None and not job.events.has_content:
            self._forecast.learn_timeout(job.plan, job.meter)

    def learn_end(self, job: Job) -> None:
        """Learn from a complete answer."""
        if job.plan is not None:
            self._forecast.learn_end(job.meter, _max_tokens(job, job.plan))

    def warn_if_slow(self, published: float | None) -> None:
        """Log once, when there are enough answers to compare the speed with the published one, in tokens per second."""
        self._answers += 1
        measured = self.tokens_per_s
        if self._answers == _ANSWERS and published and measured and measured < _SLOW_SHARE * published:
            _log.warning("%s is slow: %s; %s", self._name, speed_text(measured, published), _SLOW_ADVICE)

    def _refusal(self, plan: Plan | None, expected_s: float, limit_s: float) -> GatewayError:
        limit = f"the limit for the first token is {limit_s:g} s"
        alone_s = None if plan is None else self._forecast.first_token_s(plan, others=0)
        if plan is not None and alone_s is not None and alone_s > limit_s:
            tokens = f"the {plan.computed_tokens} new tokens of this prompt"
            return FirstTokenTooLate(f"{self._name} needs about {alone_s:.1f} s for {tokens}; {limit}.")
        busy = f"{self._name} is busy and would begin its answer in about {expected_s:.1f} s"
        return QueueFull(f"{busy}; {limit}.", retry_after_s=expected_s - limit_s)


def _max_tokens(job: Job, plan: Plan) -> int:
    """The most tokens that the whole answer can have."""
    return job.generation.n * max(1, plan.max_tokens)


def speed_text(measured: float | None, published: float | None) -> str:
    """For a person: "19.7 tokens/s, 93 % of 21.2"; "" if neither is known."""
    if measured is None:
        return f"not measured yet, {published:.1f} tokens/s are published" if published else ""
    share = f", {100 * measured / published:.0f} % of {published:.1f}" if published else ""
    return f"{measured:.1f} tokens/s{share}"
