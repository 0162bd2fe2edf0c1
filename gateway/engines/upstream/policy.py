"""Which target answers a request: the one with the lowest cost. Pure: no clock, no state, no random number.

    cost = (1 + requests in flight / relative weight) * (1 + MISS_COST * missed blocks, at most MOST_MISSED)

Misses are counted from the target that has the most blocks of the prompt (prefixes.py). So a conversation goes to the
target that has its cache, unless its first factor is above 2.6 times that of another one: then the request is spilled.
Without known blocks this is weighted least load. A weight is relative to the mean of the candidates, so only ratios
count: the rule is the same for devices that compute one request at a time and for servers that compute fifty.
Idle targets are equal, whatever their weight. Otherwise all gateways that share targets would fill the largest one
first. `benchmarks/scale.py` simulates this function, and docs/scale.md derives its constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Reason = Literal["only", "least-loaded", "affinity", "spill"]

# docs/scale.md has the reasons for these values.
MISS_COST = 0.2  # a block that must be computed again counts like 0.2 times the load
MOST_MISSED = 8  # blocks that count: more do not hold a request at a target with a higher load
# Also if only every second or third number is used for a tie, each target gets its share.
_SPREAD = 0x9E3779B97F4A7C15  # 2**64 divided by the golden ratio


class Candidate(NamedTuple):
    """A target that may get the request."""

    load: int  # its requests in flight
    weight: float = 1.0  # above 0


@dataclass(frozen=True, slots=True)
class Choice:
    index: int  # of the candidate
    reason: Reason


def choose(candidates: Sequence[Candidate], matches: Sequence[int], tie: int) -> Choice:
    """The candidate with the lowest cost.

    Args:
        candidates: at least one.
        matches: for each of them, the blocks at the start of this prompt that it has.
        tie: decides between equal costs: a number that differs from request to request. A counter is enough.

    Returns:
        The reason is `only` for a single candidate; `least-loaded` if all have the same number of blocks; else
        `affinity` if the chosen one has the most blocks, and `spill` if it does not.
    """
    if len(candidates) == 1:
        return Choice(0, "only")
    most, mean = max(matches), sum(weight for _, weight in candidates) / len(candidates)
    costs = [
        (1 + load * mean / weight) * (1 + MISS_COST * min(most - match, MOST_MISSED))
        for (load, weight), match in zip(candidates, matches, strict=True)
    ]
    lowest = min(costs)
    tied = [index for index, cost in enumerate(costs) if cost == lowest]
    index = tied[(tie * _SPREAD % 2**64 >> 32) % len(tied)]
    return Choice(index, _reason(matches, index))


def _reason(matches: Sequence[int], index: int) -> Reason:
    most = max(matches)
    if most == min(matches):
        return "least-loaded"
    return "affinity" if matches[index] == most else "spill"
