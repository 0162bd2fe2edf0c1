"""Predicts the time to first token and the length of an answer from past device calls.

The prefill of a prompt takes a known number of chunks of a fixed width, and an answer takes about one step for each
token. So both are known before the request runs, when chunks and steps have been measured:

    prefill = chunk_s * chunks + token_s * (prompt tokens computed)

1. On an NPU a chunk costs the same for any number of tokens in it (token_s is 0). On a CPU a chunk alone costs little
   (chunk_s is small). Both terms are a least-squares fit to the measurements; newer ones weigh more. After one
   measurement each term explains half of it. A prompt can be slow by accident but not fast: if one takes less than
   half of the prediction, all older measurements are forgotten.
2. The length of an answer is not known. Past requests used a share of their `max_tokens`; the next one is assumed to
   use the same share.
3. With n other requests, a request takes 1 + contention * n times its own device time. The contention depends on the
   engine, so it is measured: the device time of all requests until the first token, relative to the request's own.
4. Only device time is learned. Time in queues, in the compiler of a client's grammar and in templates says nothing.
5. If every request is refused, nothing new is measured. So one request is let through after 30 seconds of refusals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from gateway.engines.base import Plan
from gateway.generation import Meter

_SMOOTHING = 0.2  # weight of the newest measurement in an average
_DECAY = 0.9  # weight of an older prefill measurement, for each newer one
_RIDGE = 1e-9
_MAX_CONTENTION = 4.0
_REFUSING_S = 30.0


class PrefillTimes:
    """seconds = chunk_s * chunks + token_s * tokens, fitted to measurements. Neither term is below 0."""

    _cc: float  # sums of products of the measurements: chunks, tokens (in full chunks), seconds
    _ct: float
    _tt: float
    _cs: float
    _ts: float

    def __init__(self) -> None:
        self._forget()

    def learn(self, tokens: int, width: float, seconds: float) -> None:
        expected_s = self.seconds(tokens, width)
        if expected_s is not None and seconds < expected_s / 2:
            self._forget()
        chunks, full = _chunks(tokens, width), tokens / width
        size = chunks + full  # errors are relative to it, so a long prompt has no more weight than a short one
        c, t, s = chunks / size, full / size, seconds / size
        self._cc, self._ct, self._tt = (
            _DECAY * total + x for total, x in ((self._cc, c * c), (self._ct, c * t), (self._tt, t * t))
        )
        self._cs, self._ts = _DECAY * self._cs + c * s, _DECAY * self._ts + t * s

    def seconds(self, tokens: int, width: float) -> float | None:
        """None before the first measurement."""
        if not self._cc:
            return None
        chunk_s, full_s = self._fit()
        return chunk_s * _chunks(tokens, width) + full_s * tokens / width

    def _forget(self) -> None:
        self._cc = self._ct = self._tt = self._cs = self._ts = 0.0

    def _fit(self) -> tuple[float, float]:
        """Seconds for a chunk itself, and seconds for the tokens of a full chunk."""
        ridge = _RIDGE * (self._cc + self._tt)
        cc, tt, ct = self._cc + ridge, self._tt + ridge, self._ct
        determinant = cc * tt - ct * ct
        chunk_s = (self._cs * tt - self._ts * ct) / determinant
        full_s = (self._ts * cc - self._cs * ct) / determinant
        if chunk_s < 0:
            return 0.0, self._ts / tt
        return (chunk_s, full_s) if full_s >= 0 else (self._cs / cc, 0.0)


class Forecast:
    """The forecast of one model, from the meters of its requests.

    Args:
        clock: seconds, monotonic; the clock of the meters.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._prefill = PrefillTimes()
        self._step_s: float | None = None
        self._share_used = 1.0  # of max_tokens
        self._contention = 1.0
        self._next_trial_at: float | None = None  # set while requests are refused

    def first_token_s(self, plan: Plan, others: int) -> float | None:
        """Predicted TTFT in seconds from admission, with `others` running. None before the first measurement."""
        seconds = self._prefill.seconds(plan.computed_tokens, plan.chunk_width)
        return None if seconds is None else seconds * self._slowdown(others)

    def remaining_s(self, plan: Plan, meter: Meter, max_tokens: int, others: int) -> float | None:
        """Predicted seconds until a request with this meter ends. None before the first measurement."""
        prefill_s = self._prefill.seconds(plan.computed_tokens, plan.chunk_width)
        if prefill_s is None:
            return None
        has_first = meter.first_token_at is not None
        prefill_left_s = 0.0 if has_first else max(0.0, prefill_s - meter.device_s_at(self._clock()))
        tokens_left = max(0.0, self._share_used * max_tokens - max(1, meter.completion_tokens))
        return (prefill_left_s + tokens_left * (self._step_s or 0.0)) * self._slowdown(others)

    def learn_first_token(self, plan: Plan, meter: Meter, others: int) -> None:
        """Learn from a request with its first token; `others` were running when it started."""
        if meter.first_token_at is None or meter.prompt_s <= 0:
            return
        self._prefill.learn(max(1, meter.computed_tokens), plan.chunk_width, meter.prompt_s)
        self._next_trial_at = None
        if others:
            slowdown = meter.shared_s / meter.prompt_s
            contention = min(max(0.0, (slowdown - 1) / others), _MAX_CONTENTION)
            self._contention += _SMOOTHING * (contention - self._contention)

    def learn_timeout(self, plan: Plan, meter: Meter) -> None:
        """Learn from a request that got no first token in time. Its prefill takes longer than the device worked for it:
        assume two times that. If the device did not work for it, it waited for something else, and nothing is learned.
        """
        seconds = 2 * meter.device_s
        if not seconds:
            return
        expected_s = self._prefill.seconds(plan.computed_tokens, plan.chunk_width)
        if expected_s is None or expected_s < seconds:
            self._prefill.learn(plan.computed_tokens, plan.chunk_width, seconds)

    def learn_end(self, meter: Meter, max_tokens: int) -> None:
        """Learn from a complete answer."""
        later_tokens = meter.completion_tokens - 1
        if later_tokens > 0:
            step_s = (meter.device_s - meter.prompt_s) / later_tokens
            self._step_s = step_s if self._step_s is None else self._step_s + _SMOOTHING * (step_s - self._step_s)
        self._share_used += _SMOOTHING * (min(1.0, meter.completion_tokens / max(1, max_tokens)) - self._share_used)

    @property
    def tokens_per_s(self) -> float | None:
        """Generated tokens for each second of device time, in recent answers. None before the first one."""
        return 1 / self._step_s if self._step_s else None

    def should_refuse(self) -> bool:
        """False once in 30 seconds of refusals (point 5 above), else True."""
        now = self._clock()
        if self._next_trial_at is None:
            self._next_trial_at = now + _REFUSING_S
        if now < self._next_trial_at:
            return True
        self._next_trial_at = now + _REFUSING_S
        return False

    def _slowdown(self, others: int) -> float:
        return 1 + self._contention * others


def _chunks(tokens: int, width: float) -> int:
    return max(1, math.ceil(tokens / width))
