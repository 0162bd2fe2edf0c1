"""Drafts from the prompt and the answer so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.worker.drafting.costs import MARGIN, CallCosts, Credit

_LONGEST_MATCH = 12
_UNLIKELY = 0.05  # a draft ends when its probability falls below this
_DECAY = 0.98  # the weight of a guess halves after 35 further guesses
_FIRST_CREDIT, _MOST_CREDIT = 0.5, 20.0  # single steps


class PromptLookupDrafter:
    """Prompt-lookup decoding: drafts what followed the last two tokens when they occurred before.

    The drafter also guesses when no draft is requested, and counts how often a guess is right, by the length of the
    suffix match. So it costs no device time while it does not pay, and it notices when it would pay again.

    Args:
        ids: prompt and answer. The caller appends one token before each `follow`.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._positions: dict[tuple[int, int], int] = {}  # a pair of tokens -> the latest position after it
        self._indexed = 1  # `_positions` has the pairs that end before this position
        self._next = 0  # the position whose token is expected next; 0: none
        self._matched = 0  # length of the suffix match that ends at `_next`
        self._right = [matched / (matched + 2) for matched in range(_LONGEST_MATCH + 1)]  # by length of the match
        self._guesses = [1.0] * (_LONGEST_MATCH + 1)
        self.credit = Credit(_FIRST_CREDIT, _MOST_CREDIT)

    def follow(self, token: int) -> None:
        """The caller has appended this token to the ids."""
        if self._next:
            self._count(self._ids[self._next] == token)
        if not self._next:
            self._look_up()

    def draft(self, limit: int, costs: CallCosts, rate: float) -> Sequence[int]:
        """Up to `limit` tokens that can come next.

        Empty if no match is known, or if `rate` tokens per second are possible without this draft.
        """
        if not self._next or not rate:
            return ()
        size = self._best_size(limit, costs, rate)
        start, period = self._next, len(self._ids) - self._next
        return [self._ids[start + offset % period] for offset in range(size)]

    def _best_size(self, limit: int, costs: CallCosts, rate: float) -> int:
        """The draft size with the most expected tokens per second; 0 if none has more than `rate`."""
        best, expected, likely = 0, 1.0, 1.0
        most_s = (1 + self.credit.steps) / rate  # the least width may cost more
        rate = rate * MARGIN if self.credit.steps > 0 else math.inf
        for size in range(1, limit + 1):
            matched = min(self._matched + size - 1, _LONGEST_MATCH)
            likely *= self._right[matched] / self._guesses[matched]
            expected += likely
            is_last = likely < _UNLIKELY or size == limit
            if costs.has_width(size + 1) or is_last:
                seconds = costs.verify_cost(size + 1)
                if seconds > most_s and costs.width(size + 1) > costs.width(2):
                    break
                if expected / seconds > rate:
                    best, rate = size, expected / seconds
            if is_last:
                break
        return best

    def _count(self, was_right: bool) -> None:
        matched = min(self._matched, _LONGEST_MATCH)
        self._right[matched] = self._right[matched] * _DECAY + was_right
        self._guesses[matched] = self._guesses[matched] * _DECAY + 1
        self._next = self._next + 1 if was_right else 0
        self._matched += 1

    def _look_up(self) -> None:
        ids, end = self._ids, len(self._ids)
        for position in range(self._indexed, end - 1):
            self._positions[ids[position - 1], ids[position]] = position + 1
        self._indexed = max(end - 1, 1)
        self._next = self._positions.get((ids[-2], ids[-1]), 0) if end > 1 else 0
        matched = 2
        while matched < _LONGEST_MATCH and matched < self._next and self._agrees(matched):
            matched += 1
        self._matched = matched

    def _agrees(self, distance: int) -> bool:
        """True if the tokens `distance` before the match and before the end are equal."""
        return self._ids[self._next - 1 - distance] == self._ids[len(self._ids) - 1 - distance]
