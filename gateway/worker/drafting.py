"""Speculative decoding: drafts of the next tokens, which the model verifies in one device call.

Two sources: the text that the client expects (`PredictionDrafter`), and the prompt and the answer so far
(`PromptLookupDrafter`). The first is always followed. The second drafts only if `CallCosts` predicts a gain. Graphs of
fixed shape cost the same for any number of ids up to their width, so both fill a width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

_FIRST_WIDTH = 8
_MIN_WIDTH = 4  # a call that verifies 2 to 5 tokens costs about as much as two single steps

#: ids of a verify call -> its time in single steps, used until it is measured (source: SmolLM2-135M on the CPU)
_USUAL_COST = {1: 1.0, 2: 2.0, 4: 2.3, 8: 2.9, 16: 3.8, 32: 6.0, 64: 9.6}
_MARGIN = 1.1  # a draft must promise this much more than steps
_LONGEST_MATCH = 12
_UNLIKELY = 0.05  # a draft ends when its probability falls below this
_DECAY = 0.98  # the weight of a guess halves after 35 further guesses


class PredictionIndex:
    """The tokens of a prediction and where they occur. All choices of a request share one.

    Args:
        text: the tokens of the prediction.
    """

    def __init__(self, text: Sequence[int]) -> None:
        self.text = list(text)
        self._pairs: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # -> positions after the pair
        self._singles: defaultdict[int, list[int]] = defaultdict(list)
        for position, token in enumerate(text):
            self._singles[token].append(position + 1)
            if position:
                self._pairs[text[position - 1], token].append(position + 1)

    def positions_after(self, previous: int | None, token: int) -> Sequence[int]:
        """The positions after this pair of tokens; else the position after `token` if the text has it only once."""
        found = self._pairs.get((previous, token), []) if previous is not None else []
        singles = self._singles.get(token, [])
        return found or (singles if len(singles) == 1 else [])


class PredictionDrafter:
    """Drafts from the client's predicted text (`prediction`), also past edits.

    While the answer agrees with the text, the next tokens of the text are the draft. After a difference, the drafter
    finds the position again by the last two tokens, or by one token that the text has only once. Of several positions
    it takes the nearest one ahead. The width doubles when all of a draft was right; else it shrinks to the right part.
    """

    def __init__(self, index: PredictionIndex) -> None:
        self._index, self._text = index, index.text
        self._next = 0  # position in the text of the next draft; the text's end if the position is unknown
        self._followed = 0  # position up to which the answer has followed the text
        self._width = _FIRST_WIDTH
        self._previous: int | None = None

    def draft(self, limit: int) -> Sequence[int]:
        """Up to `limit` tokens that can come next; empty if the position in the text is unknown."""
        return self._text[self._next : self._next + min(self._width, limit)]

    def follow(self, token: int) -> None:
        """Append a token to the answer."""
        if self._text[self._next : self._next + 1] == [token]:
            self._next += 1
            self._followed = self._next
        else:
            self._next = self._position_after(token)
        self._previous = token

    def record(self, drafted: int, accepted: int) -> None:
        """Adapt the width to the number of right tokens in the last draft."""
        self._width = self._width * 2 if accepted == drafted else max(_MIN_WIDTH, accepted)

    def _position_after(self, token: int) -> int:
        found = self._index.positions_after(self._previous, token)
        ahead = [position for position in found if position >= self._followed]
        return min(ahead) if ahead else max(found, default=len(self._text))


class CallCosts:
    """The measured durations of device calls, shared by all requests of a decoder.

    A short call changes an estimate at once, a long one only a little: other programs can make a call longer.

    Args:
        pass_costs: see DecoderSpec; empty: the usual costs of a graph of any width.
    """

    def __init__(self, pass_costs: Mapping[int, float] | None = None) -> None:
        self._usual = dict(pass_costs or _USUAL_COST)
        self._has_passes = bool(pass_costs)
        self._steps: dict[int, float] = {}  # number of sequences -> seconds
        self._verified: dict[int, float] = {}  # number of ids, rounded up to a key of `_usual` -> seconds

    def record_step(self, sequences: int, seconds: float) -> None:
        _update(self._steps, sequences, seconds)
        if sequences == 1:
            self._drift()

    def record_verify(self, ids: int, seconds: float) -> None:
        _update(self._verified, self.width(ids), seconds)

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


def _update(estimates: dict[int, float], key: int, measured: float) -> None:
    known = estimates.setdefault(key, measured)
    estimates[key] += (0.5 if measured < known else 0.05) * (min(measured, 4 * known) - known)


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

    def follow(self, token: int) -> None:
        """The caller has appended this token to the ids."""
        if self._next:
            self._count(self._ids[self._next] == token)
        if not self._next:
            self._look_up()

    def draft(self, limit: int, costs: CallCosts, sequences: int) -> Sequence[int]:
        """Up to `limit` tokens that can come next.

        Empty if no match is known, or if steps that `sequences` sequences share give more tokens per second.
        """
        rate = costs.step_rate(sequences)
        if not self._next or not rate:
            return ()
        size = self._best_size(limit, costs, rate * _MARGIN)
        start, period = self._next, len(self._ids) - self._next
        return [self._ids[start + offset % period] for offset in range(size)]

    def _best_size(self, limit: int, costs: CallCosts, rate: float) -> int:
        """The draft size with the most expected tokens per second; 0 if none has more than `rate`."""
        best, expected, likely = 0, 1.0, 1.0
        for size in range(1, limit + 1):
            matched = min(self._matched + size - 1, _LONGEST_MATCH)
            likely *= self._right[matched] / self._guesses[matched]
            expected += likely
            is_last = likely < _UNLIKELY or size == limit
            if (costs.has_width(size + 1) or is_last) and expected / costs.verify_cost(size + 1) > rate:
                best, rate = size, expected / costs.verify_cost(size + 1)
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
