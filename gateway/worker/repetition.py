"""Repeated sequences in an answer, found token by token, for the sampler DRY ("don't repeat yourself").

If the last n tokens of the answer occurred before, the token that followed them then would make the repetition longer.
Its logit is lowered by `multiplier * base ** (n - allowed_length)`, from `allowed_length` tokens on. Single words can
repeat, and a loop cannot last.

The prompt does not count: a model must be able to quote it. A sequence does not continue across a token with a line
break, a quotation mark, a colon or an asterisk, so equal names and short values in several JSON objects or list items
cost nothing. A value of more than `allowed_length` tokens counts as a sequence.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gateway.sampling import Sampling
from gateway.worker.decoders.base import Logits

_BREAKERS = frozenset(b'\n:"*')
_MAX_PENALTY = 1e4  # more than the largest difference of two logits, and exact enough in float32
_MIN_CAPACITY = 256


class RepetitionPenalty:
    """DRY for one choice. Each token costs one pass over the answer: 4 us of CPU time for 200 tokens, 16 us for 8000.

    An answer of one repeated token costs more: 1 ms for 8000, if the penalty is too low to end it.

        penalty = RepetitionPenalty(Sampling(dry_multiplier=0.8), lambda token: b"x")
        for token in (1, 2, 3, 1, 2):
            penalty.append(token)
        penalty.apply(logits)  # logits[3] is lower by 0.8

    Args:
        token_bytes: the text of a token.
    """

    def __init__(self, sampling: Sampling, token_bytes: Callable[[int], bytes]) -> None:
        self._multiplier, self._base = sampling.dry_multiplier, sampling.dry_base
        self._allowed = sampling.dry_allowed_length
        self._token_bytes = token_bytes
        self._count = 0
        self._ids = np.zeros(_MIN_CAPACITY, np.int64)
        #: At i: how many tokens before position i are equal to the last ones of the answer.
        self._lengths = np.zeros(_MIN_CAPACITY, np.int64)

    def append(self, token: int) -> None:
        """Take the next token of the answer."""
        count = self._count
        if count + 1 >= len(self._ids):
            self._ids, self._lengths = (np.resize(part, 2 * len(part)) for part in (self._ids, self._lengths))
        if _BREAKERS.isdisjoint(self._token_bytes(token)):
            self._lengths[1 : count + 1] = (self._lengths[:count] + 1) * (self._ids[:count] == token)
        else:
            self._lengths[: count + 1] = 0
        self._ids[count] = token
        self._lengths[0] = self._lengths[count + 1] = 0
        self._count = count + 1

    def apply(self, logits: Logits) -> None:
        """Lower the logits of the tokens that make a repetition longer, in place."""
        lengths = self._lengths[: self._count]
        positions = np.flatnonzero(lengths >= self._allowed)
        if not len(positions):
            return
        longest: dict[int, int] = {}
        for token, length in zip(self._ids[positions].tolist(), lengths[positions].tolist(), strict=True):
            longest[token] = max(length, longest.get(token, 0))
        for token, length in longest.items():
            logits[token] -= self._penalty(length)

    def _penalty(self, length: int) -> float:
        try:
            return min(_MAX_PENALTY, self._multiplier * self._base ** (length - self._allowed))
        except OverflowError:
            return _MAX_PENALTY
