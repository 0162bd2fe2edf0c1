"""What is counted of the requests of one hour, model and key: numbers with a name from a fixed list.

    requests, answered, refused, failed, cancelled            each request is one of the last four
    prompt_tokens, cached_tokens, completion_tokens
    ending stop, ending latency_breaker_open, ...             finish reasons, and codes of errors
    ttft 7, token 3                                           answers whose time is in this bucket (`bucket`)

All of them can be added, so two gateways with one file write to the same numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple, get_args

from gateway.errors import GatewayError, cut
from gateway.generation import FinishReason
from gateway.monitoring.observers import CANCELLED, AnswerRecord

_REFUSALS = {"rate_limit_exceeded", "latency_breaker_open", "model_not_ready", "first_token_too_late"}
_FIRST_MS, _FACTOR, _LAST = 2.0, 1.25, 60  # bucket n ends at 2 ms * 1.25**n; the last one has all above 17 minutes
_MOST_TOKENS = 2**40  # of one request: an upstream server may report any number
_LONGEST_NAME = 200
_LAST_HOUR = 2**31 // 3600 * 2

#: The numbers of one cell.
Counts = Counter[str]


class Cell(NamedTuple):
    """What the numbers belong to. `hour`: since 1970; `key`: "" without keys; `model`: "" if the name is unknown."""

    hour: int
    model: str
    key: str


def cell_of(record: AnswerRecord) -> Cell:
    hour = min(max(int(record.at // 3600), 0), _LAST_HOUR)
    return Cell(hour, cut(record.model, _LONGEST_NAME), cut(record.key, _LONGEST_NAME))


def counts_of(record: AnswerRecord) -> Counts:
    """The numbers of one request."""
    counts: Counts = Counter(
        {
            "requests": 1,
            outcome(record): 1,
            f"ending {record.ending if record.ending in known_endings() else 'other'}": 1,
            "prompt_tokens": _tokens(record.prompt_tokens),
            "cached_tokens": _tokens(record.cached_tokens),
            "completion_tokens": _tokens(record.completion_tokens),
        }
    )
    if record.ttft_ms is not None:
        counts[f"ttft {bucket(record.ttft_ms)}"] = 1
    if record.per_token_ms is not None:
        counts[f"token {bucket(record.per_token_ms)}"] = 1
    return +counts


def outcome(record: AnswerRecord) -> str:
    """answered, cancelled by the client, refused before an answer began, or failed."""
    if record.ending == "cancelled" or record.status == CANCELLED:
        return "cancelled"
    if record.status < 400:
        return "answered"
    return "refused" if record.status < 500 or record.ending in _REFUSALS else "failed"


@cache
def known_endings() -> frozenset[str]:
    """The endings that are counted by name. An upstream server cannot add one."""
    kinds: list[type[GatewayError]] = [GatewayError]
    for kind in kinds:  # the loop adds the subclasses while it runs
        kinds.extend(kind.__subclasses__())
    return frozenset({*get_args(FinishReason), "cancelled", *(kind.code or kind.type for kind in kinds)})


def _tokens(number: int) -> int:
    return min(max(number, 0), _MOST_TOKENS)


def bucket(ms: float) -> int:
    """The number of the first bucket whose end is not below `ms`."""
    if not ms > _FIRST_MS:
        return 0
    return min(math.ceil(math.log(ms / _FIRST_MS, _FACTOR) - 1e-9), _LAST) if math.isfinite(ms) else _LAST


def quantile(counts: Mapping[str, int], name: str, share: float) -> float | None:
    """The time in milliseconds that `share` of the answers did not exceed; None without an answer.

    Args:
        name: "ttft" or "token". The result is at most 25 % above the true value.
    """
    found = list(_buckets(counts, name))
    rank, seen = share * sum(number for _, number in found), 0
    for index, number in found:
        seen += number
        if seen >= rank:
            return round(_FIRST_MS * _FACTOR**index, 1)
    return None


def _buckets(counts: Mapping[str, int], name: str) -> Iterator[tuple[int, int]]:
    """Number and count of each bucket. Names that this version does not write are left out."""
    for index in range(_LAST + 1):
        if (number := counts.get(f"{name} {index}", 0)) > 0:
            yield index, number
