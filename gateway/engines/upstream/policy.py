"""Which target answers a request: the one with the lowest cost. Pure: no clock, no state, no random number.

The cost counts in blocks of a prompt (prefixes.py), because a block that a target does not have costs it one pass:

    cost = LOAD_BLOCKS * (requests in flight + 1) / weight - blocks that the target has, at most MOST_AFFINE

So a conversation goes to the target that has its cache, unless that one has too many more requests than another: the
request is spilled. Without known blocks this is weighted least load. `benchmarks/scale.py` simulates this function, and
docs/scale.md derives its constants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Reason = Literal["only", "least-loaded", "affinity", "spill"]

# docs/scale.md has the reasons for these values.
LOAD_BLOCKS = 4.0  # blocks that a request in flight is worth on a target of weight 1
MOST_AFFINE = 32  # known blocks that count: more do not attract a request more


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
        matches: for each of them, the blocks of this prompt that it has.
        tie: a random number of 32 bits, not negative; it decides between equal costs.

    Returns:
        The reason is `only` for a single candidate; `least-loaded` if all have the same number of blocks; else
        `affinity` if the chosen one has the most blocks, and `spill` if it does not.
    """
    if len(candidates) == 1:
        return Choice(0, "only")
    costs = [
        LOAD_BLOCKS * (load + 1) / weight - min(match, MOST_AFFINE)
        for (load, weight), match in zip(candidates, matches, strict=True)
    ]
    lowest = min(costs)
    tied = [index for index, cost in enumerate(costs) if cost == lowest]
    index = tied[tie % len(tied)]
    return Choice(index, _reason(matches, index))


def _reason(matches: Sequence[int], index: int) -> Reason:
    most = max(matches)
    if most == min(matches):
        return "least-loaded"
    return "affinity" if matches[index] == most else "spill"
