"""Guessing the next tokens, so that the model checks several in one device call.

Two sources: the text that the client expects (`PredictionDrafter`), and the prompt and the answer so far
(`PromptLookupDrafter`). The first is always followed. The second drafts only if `CallCosts` predicts a gain.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

_FIRST_WIDTH = 8
_LEAST_WIDTH = 4  # verifying 2 to 5 tokens costs about the same, two single steps (see decoder.py)

#: ids of one verified call -> its time in single steps, until it has been measured (SmolLM2 on the CPU)
_USUAL_COST = {1: 1.0, 2: 2.0, 4: 2.3, 8: 2.9, 16: 3.8, 32: 6.0, 64: 9.6}
_MARGIN = 1.1  # a guess must promise this much more than going without
_LONGEST_MATCH = 12
_UNLIKELY = 0.05  # no draft goes on past this
_FADING = 0.98  # what has been seen counts half after 35 guesses


class PredictionDrafter:
    """Follows an answer through its predicted text (`prediction`), also past edits.

    While the answer agrees with the text, the text's next tokens are the draft. Where it departs, the drafter waits
    until the last two tokens, or one that the text has only once, are found again; the nearest place ahead counts.
    Drafts double while they are wholly right and shrink to what was right when they are not.
    """

    def __init__(self, text: Sequence[int]) -> None:
        self._text = list(text)
        self._next = 0  # the place in the text that comes next; its end when the answer is elsewhere
        self._followed = 0  # the place up to which the answer is known to have followed
        self._width = _FIRST_WIDTH
        self._previous: int | None = None
        self._pairs: defaultdict[tuple[int, int], list[int]] = defaultdict(list)  # -> places right after the pair
        self._singles: defaultdict[int, list[int]] = defaultdict(list)
        for place, token in enumerate(text):
            self._singles[token].append(place + 1)
            if place:
                self._pairs[text[place - 1], token].append(place + 1)

    def draft(self, most: int) -> Sequence[int]:
        """At most `most` tokens that may come next; empty when there is nothing to go by."""
        return self._text[self._next : self._next + min(self._width, most)]

    def follow(self, token: int) -> None:
        """The answer goes on with this token."""
        if self._text[self._next : self._next + 1] == [token]:
            self._next += 1
            self._followed = self._next
        else:
            self._next = self._place_after(token)
        self._previous = token

    def learn(self, drafted: int, accepted: int) -> None:
        """So many tokens of the last draft were right."""
        self._width = self._width * 2 if accepted == drafted else max(_LEAST_WIDTH, accepted)

    def _place_after(self, token: int) -> int:
        places = self._pairs.get((self._previous, token), []) if self._previous is not None else []
        if not places and len(self._singles.get(token, [])) == 1:
            places = self._singles[token]
        ahead = [place for place in places if place >= self._followed]
        return min(ahead) if ahead else max(places, default=len(self._text))


class CallCosts:
    """Seconds that device calls take, learnt from those that were made; one for all requests of a decoder.

    A call slowed down by something else on the machine moves an estimate little, a fast one moves it at once.
    """

    def __init__(self) -> None:
        self._steps: dict[int, float] = {}  # by sequences that take part
        self._verified: dict[int, float] = {}  # by ids, rounded up to a key of _USUAL_COST

    def record_step(self, sequences: int, seconds: float) -> None:
        _learn(self._steps, sequences, seconds)
        if sequences == 1:
            self._forget()

    def record_verify(self, ids: int, seconds: float) -> None:
        _learn(self._verified, _rounded(ids), seconds)

    def step_rate(self, sequences: int) -> float:
        """Tokens per second of steps that so many sequences make together; 0 as long as no step of one was seen."""
        if 1 not in self._steps:
            return 0.0
        return max(1 / self._steps[1], sequences / self._steps.get(sequences, math.inf))

    def verify_cost(self, ids: int) -> float:
        """Seconds of a call that verifies `ids` ids, once a step of one sequence was seen.

        A width that was never verified costs as much more than the next narrower one as usual, and no more than any
        wider one.
        """
        width, known = _rounded(ids), {1: self._steps[1], **self._verified}
        if width in known:
            return known[width]
        narrower = max(other for other in known if other < width)
        guess = known[narrower] * _USUAL_COST[width] / _USUAL_COST[narrower]
        return min([guess, *(seconds for other, seconds in known.items() if other > width)])

    def _forget(self) -> None:
        """Estimates drift to what is usual, so that what once was too expensive is tried again, rarely."""
        for width, seconds in self._verified.items():
            self._verified[width] += 0.01 * (_USUAL_COST[width] * self._steps[1] - seconds)


def _rounded(ids: int) -> int:
    return next((width for width in _USUAL_COST if width >= ids), max(_USUAL_COST))


def _learn(seconds: dict[int, float], key: int, measured: float) -> None:
    known = seconds.setdefault(key, measured)
    seconds[key] += (0.5 if measured < known else 0.05) * (min(measured, 4 * known) - known)


class PromptLookupDrafter:
    """Expects that what once followed the last two tokens follows them again.

    It guesses all the time, also where no draft is asked for, and counts how often it is right, by how many tokens
    agree already: being switched off costs the device nothing, and so does finding out that it would pay again.

    Args:
        ids: prompt and answer; grows by one token before each `follow`.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = ids
        self._places: dict[tuple[int, int], int] = {}  # two tokens -> the latest place right after them
        self._indexed = 1  # pairs that end before this place are in it
        self._next = 0  # the place that is expected to be repeated; 0: none
        self._matched = 0  # so many tokens before it are those before the end
        self._right = [matched / (matched + 2) for matched in range(_LONGEST_MATCH + 1)]  # by tokens that agreed
        self._guesses = [1.0] * (_LONGEST_MATCH + 1)

    def follow(self, token: int) -> None:
        """The answer goes on with this token, the last of the ids."""
        if self._next:
            self._count(self._ids[self._next] == token)
        if not self._next:
            self._look_up()

    def draft(self, most: int, costs: CallCosts, sequences: int) -> Sequence[int]:
        """At most `most` tokens that may come next; empty when verifying them costs more than steps, which
        `sequences` sequences now share."""
        rate = costs.step_rate(sequences)
        if not self._next or not rate:
            return ()
        size = self._best_size(most, costs, rate * _MARGIN)
        start, period = self._next, len(self._ids) - self._next
        return [self._ids[start + place % period] for place in range(size)]

    def _best_size(self, most: int, costs: CallCosts, rate: float) -> int:
        """The draft that brings most tokens a second, if that is more than `rate`; else 0."""
        best, expected, likely = 0, 1.0, 1.0
        for size in range(1, most + 1):
            matched = min(self._matched + size - 1, _LONGEST_MATCH)
            likely *= self._right[matched] / self._guesses[matched]
            expected += likely
            if likely < _UNLIKELY:
                break
            if size + 1 in _USUAL_COST and expected / costs.verify_cost(size + 1) > rate:
                best, rate = size, expected / costs.verify_cost(size + 1)
        return best

    def _count(self, was_right: bool) -> None:
        matched = min(self._matched, _LONGEST_MATCH)
        self._right[matched] = self._right[matched] * _FADING + was_right
        self._guesses[matched] = self._guesses[matched] * _FADING + 1
        self._next = self._next + 1 if was_right else 0
        self._matched += 1

    def _look_up(self) -> None:
        ids, end = self._ids, len(self._ids)
        for place in range(self._indexed, end - 1):
            self._places[ids[place - 1], ids[place]] = place + 1
        self._indexed = max(end - 1, 1)
        self._next = self._places.get((ids[-2], ids[-1]), 0) if end > 1 else 0
        agree = 2
        while agree < _LONGEST_MATCH and agree < self._next and ids[self._next - 1 - agree] == ids[end - 1 - agree]:
            agree += 1
        self._matched = agree
