"""What each API key has used, and the limits that it is compared with.

A limit per minute is a leaky bucket: what a key has used decreases by a sixtieth of the limit each second. A request is
refused if the sum would be above the limit. So a key can use a whole minute's limit at once, and a new limit counts at
once without a change of what was used. Three numbers for each key are enough to keep.

The tokens of a request are known only at its end. So a request first takes an estimate, and `give_back` corrects it. A
key that used more than it took is above its limit then, and its next requests wait.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal, Protocol

from msgspec import Struct

Limit = Literal["requests", "tokens", "concurrent"]

_SLACK = 1e-6  # of a request or token: sums of fractions are not exact


class Quota(Struct, frozen=True, kw_only=True):
    """The limits of one API key; None: no limit. Each is at least 1."""

    requests: int | None = None  # per minute
    tokens: int | None = None  # per minute, of prompts and answers
    concurrent: int | None = None  # requests in progress


class Levels(Struct, frozen=True, kw_only=True):
    """What one API key has used. `requests` and `tokens` decrease with time; they can be above the limit."""

    requests: float = 0.0
    tokens: float = 0.0
    running: int = 0  # requests in progress


class Refusal(Struct, frozen=True):
    """The limit that refuses a request, and when it will not: in seconds. `inf`: never; None: when a request ends."""

    limit: Limit
    wait_s: float | None


class Counters(Protocol):
    """Counts for each API key. The caller passes the key's limits as they are now, so a new limit counts at once.

        refusal = await counters.take("laptop", quota, tokens=300)
        ...                                                          # the request runs
        counters.give_back("laptop", quota, tokens=120)              # it used 180 tokens

    Several gateways may count together. Then `take` sees what the others took.
    """

    async def take(self, key: str, quota: Quota, tokens: int) -> Refusal | None:
        """Count one request with `tokens` tokens that begins. None: it may run, and one `give_back` is due.

        A refused request counts nothing. A cancelled call counts nothing either, now or later.
        """

    def give_back(self, key: str, quota: Quota, *, requests: int = 0, tokens: int = 0) -> None:
        """Count the end of one request. Never waits: what must be written is written in the background.

        Args:
            requests: 1 if no model worked for the request, so that it does not count; else 0.
            tokens: those that it took and did not use; negative: it used more than it took.
        """

    def levels(self, key: str, quota: Quota) -> Levels:
        """What the key has used now, as far as it is known here. Never waits."""


def taken(levels: Levels, quota: Quota, tokens: int) -> Levels | Refusal:
    """The levels with one request more, or the refusal with the longest wait."""
    waits = {
        "requests": _wait_s(levels.requests, 1, quota.requests),
        "tokens": _wait_s(levels.tokens, tokens, quota.tokens),
    }
    limit: Limit = "tokens" if waits["tokens"] > waits["requests"] else "requests"
    if math.isfinite(waits[limit]) and quota.concurrent is not None and levels.running >= quota.concurrent:
        return Refusal("concurrent", None)
    if waits[limit] > 0:
        return Refusal(limit, waits[limit])
    return Levels(requests=levels.requests + 1, tokens=levels.tokens + tokens, running=levels.running + 1)


def ended(levels: Levels, *, requests: int, tokens: int) -> Levels:
    """The levels after the end of a request; see `Counters.give_back`."""
    return Levels(
        requests=max(0.0, levels.requests - requests),
        tokens=max(0.0, levels.tokens - tokens),
        running=max(0, levels.running - 1),
    )


def after(levels: Levels, quota: Quota, seconds: float) -> Levels:
    """The levels `seconds` later. A clock that was set back changes nothing."""
    return Levels(
        requests=_decayed(levels.requests, quota.requests, seconds),
        tokens=_decayed(levels.tokens, quota.tokens, seconds),
        running=levels.running,
    )


def _wait_s(used: float, wanted: int, limit: int | None) -> float:
    if limit is None:
        return 0.0
    excess = used + wanted - limit
    if wanted > limit:
        return math.inf
    return 60.0 * excess / limit if excess > _SLACK else 0.0


def _decayed(used: float, limit: int | None, seconds: float) -> float:
    """Without a limit nothing is kept: a limit that comes later begins with nothing used."""
    return 0.0 if limit is None else max(0.0, used - limit * max(0.0, seconds) / 60.0)


class MemoryCounters(Counters):
    """The counters of one gateway. A restart forgets them.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: dict[str, tuple[float, Levels]] = {}  # when they were written, and the levels then

    async def take(self, key: str, quota: Quota, tokens: int) -> Refusal | None:
        levels = taken(self.levels(key, quota), quota, tokens)
        if isinstance(levels, Refusal):
            return levels
        self._keep(key, levels)
        return None

    def give_back(self, key: str, quota: Quota, *, requests: int = 0, tokens: int = 0) -> None:
        self._keep(key, ended(self.levels(key, quota), requests=requests, tokens=tokens))

    def levels(self, key: str, quota: Quota) -> Levels:
        at, levels = self._kept.get(key, (self._clock(), Levels()))
        return after(levels, quota, self._clock() - at)

    def _keep(self, key: str, levels: Levels) -> None:
        self._kept[key] = self._clock(), levels
