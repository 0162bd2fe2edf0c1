"""What is simulated, and what is found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from gateway.engines.upstream.prefixes import INDEX_BLOCKS

Policy = Literal["random", "sticky", "two choices", "least-loaded", "affine"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is simulated. `load`: the share of the device time that is needed if every known prefix is cached."""

    devices: int = 100
    batch: int = 1  # requests that a device computes in the time of one; it has four times as many slots
    last_turn: float = 0.2  # share of the turns that end a conversation
    turn_s: float = 20.0  # mean time between an answer and the next message
    policy: Policy = "affine"
    load: float = 0.6
    seconds: float = 900.0
    warm_s: float = 300.0  # not counted
    seed: int = 1
    group: int = 0  # devices behind each gateway of a second level; 0: one level
    gateways: int = 1  # that do not know each other's requests; a conversation uses one of them
    index: int = INDEX_BLOCKS
    slow: float = 0.0  # share of devices at a third of their speed, which no gateway knows
    stalling: float = 0.0  # share of devices that stop for 20 s now and then
    crashing: float = 0.0  # share of devices that lose everything now and then, and are back after 30 s
    hedge: bool = False  # a late request gets a second device


class Figures(NamedTuple):
    requests: int
    mean_s: float  # this and the next three: time to first token
    p50_s: float
    p99_s: float
    p999_s: float
    used: float  # mean share of the time in which a device computes
    most_used: float  # the share that 5 % of the devices exceed
    hits: float  # share of the prompt tokens that were in the cache
    hedged: float  # share of the requests that a second device got
    lost: int  # requests that failed after their first token, or for which no device was left


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
