"""The error of a request that is above a limit of its API key. It names the limit, the key, and what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.config.limits import limits_table
from gateway.errors import LimitReached, quote
from gateway.lanes.limits.counters import Limit, Quota, Refusal
from gateway.lanes.limits.estimate import Need

_BUSY_S = 1.0  # `Retry-After` if another request of the key must end first
_NAMES: dict[Limit, str] = {
    "requests": "requests_per_minute",
    "tokens": "tokens_per_minute",
    "concurrent": "concurrent_requests",
}


def limit_reached(key: str, quota: Quota, refusal: Refusal, needs: Sequence[Need], *, requested: str) -> LimitReached:
    """The error. `requested`: the model name in the request."""
    error = _never(key, quota, needs) if refusal.wait_s == math.inf else _later(key, quota, refusal, needs)
    error.requested = requested
    return error


def _later(key: str, quota: Quota, refusal: Refusal, needs: Sequence[Need]) -> LimitReached:
    where, wait_s = f"'{_NAMES[refusal.limit]}' in {limits_table(key)}", refusal.wait_s
    step = f"Try again in {_seconds(wait_s or 0)}, or raise {where} of the gateway's config."
    match refusal.limit:
        case "concurrent":
            what = f"is at its limit of {_requests(quota.concurrent)} in progress."
            step = f"Try again when one has ended, or raise {where} of the gateway's config."
        case "requests":
            what = f"is at its limit of {_requests(quota.requests)} per minute."
        case "tokens":
            needed = sum(need.total for need in needs)
            what = f"is at its limit of {quota.tokens} tokens per minute: this request needs {needed}."
    return LimitReached(f"{_owner(key)} {what} {step}", retry_after_s=_BUSY_S if wait_s is None else wait_s)


def _never(key: str, quota: Quota, needs: Sequence[Need]) -> LimitReached:
    prompt, answer = sum(need.prompt for need in needs), sum(need.answer for need in needs)
    parts = f"about {prompt} for its prompt" + (f", up to {answer} for its answer" if answer else "")
    shorter = "a shorter prompt" if not answer else "a smaller token limit or a shorter prompt"
    error = LimitReached(
        f"This request needs {prompt + answer} tokens ({parts}), and {_owner(key, is_start=False)} may use "
        f"{quota.tokens} per minute, so a retry never succeeds. Send {shorter}, or raise '{_NAMES['tokens']}' in "
        f"{limits_table(key)} of the gateway's config."
    )
    error.should_retry = False
    return error


def _owner(key: str, *, is_start: bool = True) -> str:
    owner = f"the API key {quote(key)}" if key else "this gateway"
    return owner[0].upper() + owner[1:] if is_start else owner


def _requests(number: int | None) -> str:
    return "1 request" if number == 1 else f"{number} requests"


def _seconds(seconds: float) -> str:
    return f"{max(1, math.ceil(seconds))} s"
