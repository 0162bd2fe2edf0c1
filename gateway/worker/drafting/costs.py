"""What device calls cost, and what drafts may lose."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

MARGIN = 1.1  # a draft must promise this much more than steps

#: Widths whose cost is measured, for graphs of any width.
_WIDTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 64)
#: The cost of each id after the first in single steps, until it is measured. Source: two threads, int8 activations; a
#: billion weights 0.26, 135 million 0.17.
_ID_COST = 0.25
_SURPRISE = 2.5  # the first call of a width counts for at most this much more than expected: it can be preempted
LOSS = 0.01  # the share of the time that drafts may lose


class CallCosts:
    """The measured durations of device calls, shared by all requests of a decoder.

    A short call changes an estimate at once, a long one only a little: other programs can make a call longer.

    Args:
        pass_costs: see DecoderSpec; empty: a graph of any width.
        id_cost: of a graph of any width: the cost of each id after the first, in single steps; 0: unknown.
    """

    def __init__(self, pass_costs: Mapping[int, float] | None = None, id_cost: float = 0.0) -> None:
        self._usual = dict(pass_costs or {width: 1 + (id_cost or _ID_COST) * (width - 1) for width in _WIDTHS})
        self._has_passes = bool(pass_costs)
        self._steps: dict[int, float] = {}  # number of sequences -> seconds
        self._verified: dict[int, float] = {}  # number of ids, rounded up to a key of `_usual` -> seconds

    def record_step(self, sequences: int, seconds: float) -> None:
        update(self._steps, sequences, seconds)
        if sequences == 1:
            self._drift()

    def record_verify(self, ids: int, seconds: float) -> None:
        width = self.width(ids)
        if width not in self._verified and 1 in self._steps:
            self._verified[width] = min(seconds, _SURPRISE * self.verify_cost(ids))
        update(self._verified, width, seconds)

    def step_rate(self, sequences: int) -> float:
        """Tokens per second of steps that `sequences` sequences share; 0 before the first step of a single one."""
        if 1 not in self._steps:
            return 0.0
        return max(1 / self._steps[1], sequences / self._steps.get(sequences, math.inf))

    def width(self, ids: int) -> int:
        """The number of ids whose cost is that of `ids` ids."""
        return next((width for width in self._usual if width >= ids), max(self._usual))

    def has_width(self, ids: int) -> bool:
        """True if a call with one id more costs more."""
        return ids in self._usual

    def cut(self, size: int) -> int:
        """The size up to `size` of a draft that is right, with the most tokens per second.

        Only for graphs of fixed shape: there a draft that is one id too long takes the next wider graph.
        """
        if not self._has_passes:
            return size
        cost = self.verify_cost if 1 in self._steps else lambda ids: self._usual[self.width(ids)]
        sizes = [width - 1 for width in self._usual if 1 < width <= size]
        return max([size, *sizes], key=lambda drafted: (1 + drafted) / cost(1 + drafted))

    def verify_cost(self, ids: int) -> float:
        """Seconds of a call that verifies `ids` ids. Needs a measured step of one sequence.

        A width without a measurement is scaled from the next narrower one by the usual costs. It is never above the
        measurement of a wider one.
        """
        width, known = self.width(ids), {1: self._steps[1], **self._verified}
        if width in known:
            return known[width]
        narrower = max(other for other in known if other < width)
        guess = known[narrower] * self._usual[width] / self._usual[narrower]
        return min([guess, *(seconds for other, seconds in known.items() if other > width)])

    def _drift(self) -> None:
        """Move the estimates slowly to the usual costs, so that a width that was too slow is tried again at times."""
        for width, seconds in self._verified.items():
            self._verified[width] += 0.01 * (self._usual[width] * self._steps[1] - seconds)


class Credit:
    """What drafts may still lose, in single steps. It limits the loss to a share of the time, whatever is drafted.

    Args:
        steps: at the start.
        most: the limit of what gains add.
    """

    def __init__(self, steps: float, most: float) -> None:
        self.steps, self._most = steps, most

    def stepped(self, tokens: int = 1) -> None:
        """Tokens came from steps without drafts."""
        self.settle(LOSS * tokens, 0.0)

    def settle(self, tokens: float, cost: float) -> None:
        """Calls that cost as much as `cost` single steps gave `tokens` tokens."""
        self.steps = min(self._most, self.steps + tokens - cost)


def update(estimates: dict[K, float], key: K, measured: float) -> None:
    """Move the estimate of `key` to a measured time: half of the way if it is shorter, else a little."""
    known = estimates.setdefault(key, measured)
    estimates[key] += (0.5 if measured < known else 0.05) * (min(measured, 4 * known) - known)
