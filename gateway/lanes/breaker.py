"""The latency circuit breaker: refuses requests while the device of a model is too slow.

    budget = latency_ms + prompt_token_ms * (prompt tokens computed) + token_ms * (tokens generated after the first)

1. The budget is for device time. Time in a queue and prompt tokens from the prefix cache do not count. Warm-up is not
   judged.
2. A permit is settled once. A permit from before a change of state is ignored: a request of the closed state that ends
   in the half-open state neither closes the breaker nor opens it.
3. A running request is settled `slow` as soon as its device time is above its budget (see `Watch`). So a hung call
   opens the breaker before it ends.
4. In the half-open state, good answers plus running probes are at most `probes`.

Synchronous, without a lock: every method runs on the thread of the event loop.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol

from gateway.config.tables import BreakerConfig
from gateway.errors import BreakerOpen, DeviceFailed, GatewayError, UpstreamFailed, UpstreamRefused
from gateway.generation import Meter

State = Literal["closed", "half_open", "open"]
Outcome = Literal["ok", "slow", "failed", "released"]


def outcome(error: GatewayError) -> Outcome:
    """Of a request that ended with this error: failed if a device call or the upstream server failed, else neutral."""
    failed = isinstance(error, DeviceFailed | UpstreamFailed) and not isinstance(error, UpstreamRefused)
    return "failed" if failed else "released"


class Permit:
    """Permission to use the device once. On context exit it settles as `released` unless already settled."""

    __slots__ = ("_breaker", "_epoch", "_settled")

    def __init__(self, breaker: Breaker, epoch: int) -> None:
        self._breaker = breaker
        self._epoch = epoch
        self._settled = False

    def settle(self, outcome: Outcome) -> None:
        """Report the outcome; only the first call counts. `released` is neutral: no judgement about the device."""
        if not self._settled:
            self._settled = True
            self._breaker._settle(self._epoch, outcome)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.settle("released")


class Breaker:
    """The circuit breaker of one model.

    Args:
        config: budget, window and times; with `enabled = False` it admits everything and judges nothing.
        clock: seconds, monotonic; the clock of the meters.
        name: of the model, for messages.
        on_change: called with the new state after each change.
    """

    def __init__(
        self,
        config: BreakerConfig,
        clock: Callable[[], float] = time.monotonic,
        *,
        name: str = "this model",
        on_change: Callable[[State], None] | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.reason = ""  # why it last opened, for a person
        self._name = name
        self._on_change = on_change
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
                return self.config.latency_ms / 1000
            case "open":
                return self._opened_at + self.config.open_s - self.clock()

    @property
    def verdict(self) -> tuple[int, int]:
        """(slow or failed, judged) among the last answers."""
        return sum(self._bad), len(self._bad)

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
        config = self.config
        later_tokens = meter.completion_tokens - (meter.call_since is None)
        tokens_ms = config.prompt_token_ms * meter.computed_tokens + config.token_ms * max(0, later_tokens)
        return (config.latency_ms + tokens_ms) / 1000

    def slack_s(self, meter: Meter) -> float:
        """Seconds left of the budget. Device time cannot be above the budget before they have passed."""
        return self.budget_s(meter) - meter.device_s_at(self.clock())

    def is_slow(self, meter: Meter) -> bool:
        return self.slack_s(meter) < 0

    def _may_probe(self, own_probe: bool) -> bool:
        ours = own_probe or not self.config.probe_itself
        return ours and self._probes_out + self._probes_good < self.config.probes

    def _settle(self, epoch: int, outcome: Outcome) -> None:
        if epoch != self._epoch or not self.config.enabled:
            return
        if self._state == "half_open":
            self._settle_probe(outcome)
        elif outcome != "released":
            self._bad.append(outcome != "ok")
            self._judge()

    def _settle_probe(self, outcome: Outcome) -> None:
        self._probes_out -= 1
        if outcome == "ok":
            self._probes_good += 1
            if self._probes_good >= self.config.probes:
                self._change("closed")
        elif outcome != "released":
            self._open(f"a probe {'was slow' if outcome == 'slow' else 'failed'}")

    def _judge(self) -> None:
        bad, judged = self.verdict
        enough = judged >= min(self.config.min_calls, self.config.window)
        if enough and bad >= self.config.rate * judged and bad:
            self._open(f"{bad} of its last {judged} answers were slow or failed")

    def _open(self, reason: str) -> None:
        self.reason = reason
        self._opened_at = self.clock()
        self._change("open")

    def _change(self, state: State) -> None:
        self._state = state
        self._epoch += 1
        self._bad.clear()
        self._probes_out = self._probes_good = 0
        if self._on_change:
            self._on_change(state)


class Timer(Protocol):
    def cancel(self) -> None: ...


class Watch:
    """Settles `permit` as slow as soon as the device time of its request is above the budget, until `stop` is called.

    It sleeps for the time that is left of the budget, so it wakes a few times for each request and not for each token.

    Args:
        call_later: `(seconds, function)`, of the event loop.
    """

    _MIN_SLEEP_S = 0.001

    def __init__(
        self, breaker: Breaker, meter: Meter, permit: Permit, call_later: Callable[[float, Callable[[], None]], Timer]
    ) -> None:
        self._breaker = breaker
        self._meter = meter
        self._permit = permit
        self._call_later = call_later
        self._timer: Timer | None = None
        self._check()

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _check(self) -> None:
        slack_s = self._breaker.slack_s(self._meter)
        if slack_s < 0:
            self._permit.settle("slow")
        else:
            self._timer = self._call_later(max(slack_s, self._MIN_SLEEP_S), self._check)
