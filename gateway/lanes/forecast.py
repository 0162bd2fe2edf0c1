"""What the device's past calls say of the next request: when its first token comes, and how long its answer takes.

A prompt costs a known number of passes of a fixed width, and an answer about as many steps as it has tokens, so both
are known before the request starts, once passes and steps have been measured:

    prompt = pass_s * passes + token_s * prompt tokens computed

1. An NPU's pass costs the same however full it is (token_s is 0), a CPU's nearly nothing by itself (pass_s is small).
   Both terms are fitted to what was measured, by least squares, the latest weighing most. With
   one measurement both explain half of it. A prompt may be slow by accident but not fast: one in less than half of
   the time that was expected outweighs all before it.
2. An answer's length is not known: requests so far used a share of their `max_tokens`, and the next one is taken to.
3. Beside n others a request takes 1 + contention * n times its own device time; how much that is, the engine decides,
   so it is measured.
4. Whoever refuses by a forecast measures nothing new. So after half a minute of refusals one request is let through.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from gateway.engines.base import Plan
from gateway.generation import Meter

_SMOOTHING = 0.2  # weight of the newest measurement in an average
_MEMORY = 0.9  # what a measurement of a prompt still weighs after the next one
_RIDGE = 1e-9
_HIGHEST_CONTENTION = 4.0
_REFUSING_S = 30.0


class PromptTimes:
    """seconds = pass_s * passes + token_s * tokens, fitted to measurements; neither is below 0."""

    _pp: float  # sums of products of what was measured: passes, tokens (in full passes) and seconds
    _pt: float
    _tt: float
    _ps: float
    _ts: float

    def __init__(self) -> None:
        self._forget()

    def learn(self, tokens: int, width: float, seconds: float) -> None:
        expected_s = self.seconds(tokens, width)
        if expected_s is not None and seconds < expected_s / 2:
            self._forget()
        passes, full = _passes(tokens, width), tokens / width
        size = passes + full  # errors count relative to it, so that a long prompt says no more than a short one
        p, t, s = passes / size, full / size, seconds / size
        self._pp, self._pt, self._tt = (
            _MEMORY * s + x for s, x in ((self._pp, p * p), (self._pt, p * t), (self._tt, t * t))
        )
        self._ps, self._ts = _MEMORY * self._ps + p * s, _MEMORY * self._ts + t * s

    def seconds(self, tokens: int, width: float) -> float | None:
        """None before anything was measured."""
        if not self._pp:
            return None
        pass_s, full_s = self._fit()
        return pass_s * _passes(tokens, width) + full_s * tokens / width

    def _forget(self) -> None:
        self._pp = self._pt = self._tt = self._ps = self._ts = 0.0

    def _fit(self) -> tuple[float, float]:
        """Seconds a pass costs by itself, and seconds that a pass full of tokens costs on top."""
        ridge = _RIDGE * (self._pp + self._tt)
        pp, tt, pt = self._pp + ridge, self._tt + ridge, self._pt
        determinant = pp * tt - pt * pt
        pass_s = (self._ps * tt - self._ts * pt) / determinant
        full_s = (self._ts * pp - self._ps * pt) / determinant
        if pass_s < 0:
            return 0.0, self._ts / tt
        return (pass_s, full_s) if full_s >= 0 else (self._ps / pp, 0.0)


class Forecast:
    """One model's. Fed with the meters of requests as they go.

    Args:
        clock: monotonic seconds, the one the meters are read from.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._prompts = PromptTimes()
        self._step_s: float | None = None
        self._share_used = 1.0  # of max_tokens
        self._contention = 1.0
        self._let_one_try_at: float | None = None  # set while requests are refused by forecast

    def first_token_s(self, plan: Plan, others: int) -> float | None:
        """Seconds from a request's place to its first token beside so many others; None: nothing was measured yet."""
        seconds = self._prompts.seconds(plan.computed_tokens, plan.pass_width)
        return None if seconds is None else seconds * self._stretch(others)

    def remaining_s(self, plan: Plan, meter: Meter, max_tokens: int, others: int) -> float | None:
        """Seconds until a request that has come as far as `meter` says gives up its place; None: not known yet."""
        prompt_s = self._prompts.seconds(plan.computed_tokens, plan.pass_width)
        if prompt_s is None:
            return None
        has_first = meter.first_token_at is not None
        prompt_left_s = 0.0 if has_first else max(0.0, prompt_s - meter.device_s_at(self._clock()))
        tokens_left = max(0.0, self._share_used * max_tokens - max(1, meter.completion_tokens))
        return (prompt_left_s + tokens_left * (self._step_s or 0.0)) * self._stretch(others)

    def first_token(self, plan: Plan, meter: Meter, entered_at: float, others: int) -> None:
        """A request that found `others` in progress has its first token."""
        if meter.first_token_at is None or meter.prompt_s <= 0:
            return
        self._prompts.learn(max(1, meter.computed_tokens), plan.pass_width, meter.prompt_s)
        self._let_one_try_at = None
        if others:
            stretched = (meter.first_token_at - entered_at) / meter.prompt_s
            contention = min(max(0.0, (stretched - 1) / others), _HIGHEST_CONTENTION)
            self._contention += _SMOOTHING * (contention - self._contention)

    def gave_up(self, plan: Plan, waited_s: float, others: int) -> None:
        """No first token came in so many seconds of having a place: it would have taken longer, say twice as long."""
        seconds = 2 * waited_s / self._stretch(others)
        expected_s = self._prompts.seconds(plan.computed_tokens, plan.pass_width)
        if expected_s is None or expected_s < seconds:
            self._prompts.learn(plan.computed_tokens, plan.pass_width, seconds)

    def finished(self, meter: Meter, max_tokens: int) -> None:
        """A request has ended by itself."""
        later_tokens = meter.completion_tokens - 1
        if later_tokens > 0:
            step_s = (meter.device_s - meter.prompt_s) / later_tokens
            self._step_s = step_s if self._step_s is None else self._step_s + _SMOOTHING * (step_s - self._step_s)
        self._share_used += _SMOOTHING * (min(1.0, meter.completion_tokens / max(1, max_tokens)) - self._share_used)

    def refuses(self) -> bool:
        """Whether a request that is predicted to be late is refused: nearly always; see 4."""
        now = self._clock()
        if self._let_one_try_at is None:
            self._let_one_try_at = now + _REFUSING_S
        if now < self._let_one_try_at:
            return True
        self._let_one_try_at = now + _REFUSING_S
        return False

    def _stretch(self, others: int) -> float:
        return 1 + self._contention * others


def _passes(tokens: int, width: float) -> int:
    return max(1, math.ceil(tokens / width))
