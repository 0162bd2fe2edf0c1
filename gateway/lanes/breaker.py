"""The latency breaker: says no while a model's device answers too slowly.

    budget = latency_ms + prompt_token_ms * prompt tokens computed + token_ms * tokens generated after the first

1. The promise is about the device: queueing and what the prefix cache saved are not in it; warm-up never comes here.
2. A permit settles once. What settles after the breaker has changed state says nothing about the new state, so it is
   ignored: a request of the closed time that ends during half-open neither closes the breaker nor opens it again.
3. A request that is still running may be settled `slow` the moment its device time passes its budget (see `slack_s`);
   a hung call so opens the breaker without waiting for its end.
4. While half-open, good answers and probes in flight together never exceed `probes`: more could not help to close it.

Synchronous and without a lock: every method runs to its end on the event loop's thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol

from gateway.config import BreakerConfig
from gateway.errors import BreakerOpen
from gateway.generation import Meter

State = Literal["closed", "half_open", "open"]
Outcome = Literal["ok", "slow", "failed", "released"]


class Permit:
    """Leave to use the device once; as a context manager it comes back `released` if nothing else was said."""

    __slots__ = ("_breaker", "_epoch", "_settled")

    def __init__(self, breaker: Breaker, epoch: int) -> None:
        self._breaker = breaker
        self._epoch = epoch
        self._settled = False

    def settle(self, outcome: Outcome) -> None:
        """Say how it went; the first word counts. `released` is neutral: the client left, the request was wrong."""
        if not self._settled:
            self._settled = True
            self._breaker._settle(self._epoch, outcome)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.settle("released")


class Breaker:
    """One model's breaker.

    Args:
        config: budget, window, and times; `enabled = False` admits everything and judges nothing.
        clock: monotonic seconds, the clock `Meter.call_since` was read from.
        name: the model, for the words of a refusal.
        on_change: called with the new state after each change of state.
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
        self.reason = ""  # why it last opened, for people
        self._clock = clock
        self._name = name
        self._on_change = on_change
        self._state: State = "closed"
        self._epoch = 0  # grows with every change of state
        self._bad: deque[bool] = deque(maxlen=config.window)  # the last answers: slow or failed?
        self._opened_at = 0.0
        self._probes_out = 0
        self._probes_good = 0

    @property
    def state(self) -> State:
        """The state now; an open breaker becomes half-open by looking at it when its time is over."""
        if self._state == "open" and self._clock() >= self._opened_at + self.config.open_s:
            self._change("half_open")
        return self._state

    @property
    def retry_after_s(self) -> float:
        """Seconds until a refused request may be admitted: what is left of `open_s`, or about one probe's time."""
        match self.state:
            case "closed":
                return 0.0
            case "half_open":
                return self.config.latency_ms / 1000
            case "open":
                return self._opened_at + self.config.open_s - self._clock()

    @property
    def verdict(self) -> tuple[int, int]:
        """(slow or failed, judged) among the last answers."""
        return sum(self._bad), len(self._bad)

    def admit(self, *, own_probe: bool = False) -> Permit:
        """A permit, or BreakerOpen with the seconds to wait.

        With `probe_itself` only the gateway's own probes pass a half-open breaker; without it, any request is a probe.
        """
        match self.state:
            case "closed":
                return Permit(self, self._epoch)
            case "half_open" if self._may_probe(own_probe):
                self._probes_out += 1
                return Permit(self, self._epoch)
        raise self.refusal()

    def refusal(self) -> BreakerOpen:
        """What a request hears that is not admitted."""
        wait_s = self.retry_after_s
        message = f"{self._name} is too slow now: {self.reason}. It is tried again in {max(wait_s, 0.1):.1f} s."
        return BreakerOpen(message, retry_after_s=wait_s)

    def budget_s(self, meter: Meter) -> float:
        """Device seconds the request may have used by now. A call under way may be making one more token: it counts."""
        config = self.config
        later_tokens = meter.completion_tokens - (meter.call_since is None)
        tokens_ms = config.prompt_token_ms * meter.computed_tokens + config.token_ms * max(0, later_tokens)
        return (config.latency_ms + tokens_ms) / 1000

    def slack_s(self, meter: Meter) -> float:
        """What is left of the budget now; device time cannot pass the budget in less than this."""
        return self.budget_s(meter) - meter.device_s_at(self._clock())

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
        self._opened_at = self._clock()
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
    """Settles `permit` slow at the moment its request's device time passes the budget, until `stop` is called.

    It sleeps for as long as what is left of the budget, so it wakes a few times a request and not at every token.
    `call_later(seconds, function)` is the event loop's.
    """

    _SHORTEST_SLEEP_S = 0.001

    def __init__(
        self, breaker: Breaker, meter: Meter, permit: Permit, call_later: Callable[[float, Callable[[], None]], Timer]
    ) -> None:
        self._breaker = breaker
        self._meter = meter
        self._permit = permit
        self._call_later = call_later
        self._timer: Timer | None = None
        self._look()

    def stop(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _look(self) -> None:
        slack_s = self._breaker.slack_s(self._meter)
        if slack_s < 0:
            self._permit.settle("slow")
        else:
            self._timer = self._call_later(max(slack_s, self._SHORTEST_SLEEP_S), self._look)
