"""The latency circuit breaker: refuses requests while the device of a model is too slow.

    budget = latency_ms + prompt_token_ms * (prompt tokens computed) + token_ms * (tokens generated after the first)

1. The budget is for device time. Time in a queue and prompt tokens from the prefix cache do not count. Warm-up is not
   judged. If the configuration has no budget, it is a multiple of what the device needed at this start (`Budget`).
2. A permit is settled once. A permit from before a change of state is ignored: a request of the closed state that ends
   in the half-open state neither closes the breaker nor opens it.
3. A running request is settled `slow` as soon as its device time is above its budget (`Watch` in run.py). So a hung
   call opens the breaker before it ends.
4. In the half-open state, good answers plus running probes are at most `probes`.

Synchronous, without a lock: every method runs on the thread of the event loop.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Literal

from msgspec import Struct

from gateway.config.tables import BreakerConfig
from gateway.engines.base import EngineStatus
from gateway.errors import BreakerOpen, DeviceFailed, GatewayError, UpstreamFailed, UpstreamRefused
from gateway.generation import Meter
from gateway.worker.frames import PassTimes

_LATENCY_MS = 1000.0  # a budget is never less, unless it is configured
_PROMPT_TOKEN_MS, _TOKEN_MS = 20.0, 200.0  # of an engine that does not measure its passes
_LEAST_PROMPT_TOKEN_MS, _LEAST_TOKEN_MS = 10.0, 100.0  # of a measured budget: 10 tokens/s are as fast as a reader
#: A request is slow if it takes more than this multiple of the passes at the start. Other requests in the same device
#: call, other programs and a long context are no fault. By the bytes that a step reads (weights and KV cache), SmolLM2
#: with 8192 tokens needs about 4 times as long as without. That is computed, not measured.
MARGIN = 6.0

State = Literal["closed", "half_open", "open"]
Outcome = Literal["ok", "slow", "failed", "released"]


def outcome(error: GatewayError) -> Outcome:
    """Of a request that ended with this error: failed if a device call or the upstream server failed, else neutral."""
    failed = isinstance(error, DeviceFailed | UpstreamFailed) and not isinstance(error, UpstreamRefused)
    return "failed" if failed else "released"


class Budget(Struct, frozen=True):
    """Device time that a request may use, in milliseconds."""

    latency_ms: float
    prompt_token_ms: float  # for each prompt token computed
    token_ms: float  # for each token generated after the first
    is_measured: bool = False  # at the start of the model; False: configured, or a fixed one

    @classmethod
    def of(cls, config: BreakerConfig, passes: PassTimes | None) -> Budget:
        """The configured budget. Without one: a multiple of these passes; and without passes: for a slow shared CPU."""
        if config.has_budget:
            latency_ms = _LATENCY_MS if config.latency_ms is None else config.latency_ms
            return cls(latency_ms, config.prompt_token_ms or 0.0, config.token_ms or 0.0)
        if passes is None:
            return cls(_LATENCY_MS, _PROMPT_TOKEN_MS, _TOKEN_MS)
        wide_ms, step_ms = MARGIN * 1000 * passes.wide_s, MARGIN * 1000 * passes.step_s
        prompt_token_ms = max(_LEAST_PROMPT_TOKEN_MS, wide_ms / passes.wide_tokens)
        return cls(max(_LATENCY_MS, wide_ms), prompt_token_ms, max(_LEAST_TOKEN_MS, step_ms), is_measured=True)

    def seconds(self, prompt_tokens: int, later_tokens: int) -> float:
        """For this number of prompt tokens computed, and tokens after the first."""
        return (self.latency_ms + self.prompt_token_ms * prompt_tokens + self.token_ms * later_tokens) / 1000

    def __str__(self) -> str:
        parts = [f"{self.latency_ms / 1000:.3g} s"]
        for milliseconds, unit in ((self.prompt_token_ms, "a prompt token"), (self.token_ms, "a token")):
            if milliseconds:
                parts.append(f"{milliseconds:.3g} ms {unit}")
        return " + ".join(parts)


class Permit:
    """Permission to use the device once. On context exit it settles as `released` unless already settled."""

    __slots__ = ("_breaker", "_epoch", "outcome")

    def __init__(self, breaker: Breaker, epoch: int) -> None:
        self._breaker = breaker
        self._epoch = epoch
        self.outcome: Outcome | None = None  # None: not settled yet

    def settle(self, outcome: Outcome, meter: Meter | None = None) -> None:
        """Report the outcome; only the first call counts. `released` is neutral: no judgement about the device.

        The meter of a slow request is for the figures in the message.
        """
        if self.outcome is None:
            self.outcome = outcome
            self._breaker._settle(self._epoch, outcome, meter)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.settle("released")


class BreakerStatus(Struct, frozen=True, kw_only=True):
    state: State
    reason: str  # why it last opened
    retry_after_s: float
    bad: int  # the number of slow or failed answers ...
    judged: int  # ... in the last `judged` answers
    budget: Budget | None  # a request that needs more device time is slow; None: none is


class Breaker:
    """The circuit breaker of one model.

    Args:
        config: budget, window and times; with `enabled = False` it admits everything and judges nothing.
        clock: seconds, monotonic; the clock of the meters.
        name: of the model, for messages.
        on_change: called with the new state after each change.
        status: of the engine. Its passes are the budget if none is configured. How fast another
            server may be is not known here: without a configured budget none of its answers is slow.
    """

    def __init__(
        self,
        config: BreakerConfig,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str = "this model",
        on_change: Callable[[State], None] | None = None,
        status: Callable[[], EngineStatus] = lambda: EngineStatus(state="ready"),
    ) -> None:
        self.config = config
        self.clock = clock
        self.reason = ""  # why it last opened, for a person
        self.symptom = ""  # the same in a few words: "is slow (0.77 s, limit 0.05 s)"
        self._name = name
        self._on_change = on_change
        self._status = status
        self._figures = self._short = ""  # of the last slow answer, for `reason` and `symptom`
        self._state: State = "closed"
        self._epoch = 0  # the number of changes of state
        self._bad: deque[bool] = deque(maxlen=config.window)  # for each of the last answers: slow or failed
        self._opened_at = 0.0
        self._probes_out = 0
        self._probes_good = 0

    @property
    def state(self) -> State:
        """The state now. An open breaker becomes half-open when `open_s` has passed and this is read."""
        if self._state == "open" and self.clock() >= self._opened_at + self.config.open_s:
            self._change("half_open")
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Seconds until a request may be admitted: the rest of `open_s`, or in half-open about the time of a probe."""
        match self.state:
            case "closed":
                return 0.0
            case "half_open":
                return self.budget.latency_ms / 1000
            case "open":
                return self._opened_at + self.config.open_s - self.clock()

    @property
    def budget(self) -> Budget:
        """The budget now. A measured one changes when the model is loaded again."""
        return Budget.of(self.config, self._status().passes)

    @property
    def limit(self) -> Budget | None:
        """The budget if the breaker judges the time of answers, else None."""
        return self.budget if self.config.enabled and self._judges_time else None

    @property
    def _judges_time(self) -> bool:
        return self.config.has_budget or self._status().device != "remote"

    @property
    def status(self) -> BreakerStatus:
        bad, judged = self.verdict
        return BreakerStatus(
            state=self.state,
            reason=self.reason,
            retry_after_s=self.retry_after_s,
            bad=bad,
            judged=judged,
            budget=self.limit,
        )

    @property
    def verdict(self) -> tuple[int, int]:
        """(slow or failed, judged) among the last answers."""
        return sum(self._bad), len(self._bad)

    def configure(self, config: BreakerConfig) -> None:
        """Judge by this configuration from now on. If it is another one, the breaker begins again, closed."""
        if config == self.config:
            return
        self.config = config
        self._bad = deque(maxlen=config.window)
        if self._state != "closed":
            self._change("closed")

    def admit(self, *, own_probe: bool = False) -> Permit:
        """A permit for one request.

        In the half-open state with `probe_itself`, only the gateway's own probes get one; else any request is a probe.

        Raises:
            BreakerOpen: no permit now; it has the seconds to wait.
        """
        match self.state:
            case "closed":
                return Permit(self, self._epoch)
            case "half_open" if self._may_probe(own_probe):
                self._probes_out += 1
                return Permit(self, self._epoch)
        raise self.refusal()

    def refusal(self) -> BreakerOpen:
        """The error of a request that gets no permit."""
        wait_s = self.retry_after_s
        message = f"{self._name} is too slow now: {self.reason}. It is tried again in {max(wait_s, 0.1):.1f} s."
        return BreakerOpen(message, retry_after_s=wait_s)

    def budget_s(self, meter: Meter) -> float:
        """Device seconds that the request may have used until now. The running call counts as one more token."""
        if not self._judges_time:
            return math.inf
        later_tokens = meter.completion_tokens - (meter.call_since is None)
        return self.budget.seconds(meter.computed_tokens, max(0, later_tokens))

    def slack_s(self, meter: Meter) -> float:
        """Seconds left of the budget. Device time cannot be above the budget before they have passed."""
        return self.budget_s(meter) - meter.device_s_at(self.clock())

    def is_slow(self, meter: Meter) -> bool:
        return self.slack_s(meter) < 0

    def _may_probe(self, own_probe: bool) -> bool:
        ours = own_probe or not self.config.probe_itself
        return ours and self._probes_out + self._probes_good < self.config.probes

    def _settle(self, epoch: int, outcome: Outcome, meter: Meter | None) -> None:
        if epoch != self._epoch or not self.config.enabled:
            return
        if outcome == "slow" and meter is not None:
            self._figures, self._short = self._figures_of(meter)
        if self._state == "half_open":
            self._settle_probe(outcome)
        elif outcome != "released":
            self._bad.append(outcome != "ok")
            self._judge()

    def _figures_of(self, slow: Meter) -> tuple[str, str]:
        """For `reason` and for `symptom`."""
        took_s, limit_s = slow.device_s_at(self.clock()), self.budget_s(slow)
        if slow.call_since is not None:
            figures = f"; the last slow one did not end within {limit_s:.3g} s of device time"
            return figures, f"more than {limit_s:.3g} s"
        figures = f"; the last slow one took {took_s:.3g} s of device time, the limit was {limit_s:.3g} s"
        return figures, f"{took_s:.3g} s, limit {limit_s:.3g} s"

    def _settle_probe(self, outcome: Outcome) -> None:
        self._probes_out -= 1
        if outcome == "ok":
            self._probes_good += 1
            if self._probes_good >= self.config.probes:
                self._change("closed")
        elif outcome != "released":
            self._open(f"a probe {'was slow' if outcome == 'slow' else 'failed'}{self._figures}")

    def _judge(self) -> None:
        bad, judged = self.verdict
        enough = judged >= min(self.config.min_calls, self.config.window)
        if enough and bad >= self.config.rate * judged and bad:
            self._open(f"{bad} of its last {judged} answers were slow or failed{self._figures}")

    def _open(self, reason: str) -> None:
        self.reason, self.symptom = reason, f"is slow ({self._short})" if self._short else "fails"
        self._opened_at = self.clock()
        self._change("open")

    def _change(self, state: State) -> None:
        self._state = state
        self._epoch += 1
        self._bad.clear()
        self._figures = self._short = ""
        self._probes_out = self._probes_good = 0
        if self._on_change:
            self._on_change(state)
