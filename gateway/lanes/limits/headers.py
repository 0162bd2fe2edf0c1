"""What the answer to a key with limits says of them: OpenAI's and Anthropic's headers.

OpenAI: `x-ratelimit-remaining-requests: 59`, `x-ratelimit-reset-requests: 1.2s`. Anthropic:
`anthropic-ratelimit-requests-reset: 2026-01-01T00:00:00Z`. The reset is when nothing is used any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime

from gateway.lanes.limits.counters import Levels, Quota

OPENAI_HEADERS = tuple(
    f"x-ratelimit-{what}-{limit}" for limit in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
ANTHROPIC_HEADERS = tuple(
    f"anthropic-ratelimit-{limit}-{what}"
    for limit in ("requests", "tokens")
    for what in ("limit", "remaining", "reset")
)
_LATEST = 253402300799.0  # the end of the year 9999, in seconds since 1970


def is_anthropic(path: str) -> bool:
    """True if the answers at this path have Anthropic's headers."""
    return path.startswith("/v1/messages")


def openai_headers(levels: Levels, quota: Quota) -> dict[str, str]:
    """Of the limits that the key has."""
    headers = {}
    for name, limit, used in _limits(levels, quota):
        headers[f"x-ratelimit-limit-{name}"] = str(limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(_remaining(limit, used))
        headers[f"x-ratelimit-reset-{name}"] = duration(60 * used / limit)
    return headers


def anthropic_headers(levels: Levels, quota: Quota, now: float) -> dict[str, str]:
    """The same in Anthropic's names. `now`: seconds since 1970."""
    headers = {}
    for name, limit, used in _limits(levels, quota):
        at = datetime.fromtimestamp(min(math.ceil(now + 60 * used / limit), _LATEST), UTC)
        headers[f"anthropic-ratelimit-{name}-limit"] = str(limit)
        headers[f"anthropic-ratelimit-{name}-remaining"] = str(_remaining(limit, used))
        headers[f"anthropic-ratelimit-{name}-reset"] = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers


def duration(seconds: float) -> str:
    """As OpenAI writes it: "120ms", "1s", "7.66s", "6m0s", "1h0m0s"."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{start}{f'{rest / 1000:.3f}'.rstrip('0').rstrip('.')}s"


def _limits(levels: Levels, quota: Quota) -> Iterator[tuple[str, int, float]]:
    if quota.requests is not None:
        yield "requests", quota.requests, levels.requests
    if quota.tokens is not None:
        yield "tokens", quota.tokens, levels.tokens


def _remaining(limit: int, used: float) -> int:
    return max(0, math.floor(limit - used + 1e-6))
