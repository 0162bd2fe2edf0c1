"""From logits to a token: small pure functions over one row of logits, shape (vocab,), float32.

The order is that of most model cards: bias and penalties, then temperature, top_k, top_p, min_p, then one draw. A
token's draw uses one uniform number, so that the same seed gives the same tokens however they were computed (one by
one, in a batch, or several verified at once).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from gateway.sampling import Sampling
from gateway.worker.decoders.base import Logits
from gateway.worker.frames import Scored

_GREEDY_BELOW = 1e-5  # a temperature that divides logits beyond what float32 can tell apart
_BLOCK = 256


class Sampler:
    """Chooses the tokens of one choice, one after another, and remembers them for the penalties."""

    def __init__(self, sampling: Sampling, prompt: Collection[int], choice: int) -> None:
        self._sampling = sampling
        self._random = random_numbers(sampling.seed, choice)
        self._prompt = set(prompt) if sampling.repetition_penalty != 1 else set()
        self._counts: dict[int, int] = {}
        self._counting = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self._counting |= sampling.repetition_penalty != 1
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._biases = np.fromiter(sampling.logit_bias.values(), np.float32)

    @property
    def is_greedy(self) -> bool:
        return self._sampling.temperature < _GREEDY_BELOW

    def adjust(self, logits: Logits) -> None:
        """Apply bias and penalties, in place."""
        if len(self._bias_ids):
            logits[self._bias_ids] += self._biases
        if not self._counting:
            return
        sampling = self._sampling
        if sampling.repetition_penalty != 1:
            apply_repetition_penalty(logits, self._prompt | self._counts.keys(), sampling.repetition_penalty)
        if self._counts:
            apply_count_penalties(logits, self._counts, sampling.presence_penalty, sampling.frequency_penalty)

    def choose(self, logits: Logits) -> int:
        """The next token, from logits that `adjust` has seen; may change them in place. Remembers the token.

        Raises FloatingPointError when no token is possible: all are excluded, or the logits are not numbers.
        """
        token = int(logits.argmax())
        best = logits[token]
        if not math.isfinite(best):
            raise FloatingPointError("no token has a finite logit")
        if not self.is_greedy:
            token = sample(logits, best, self._sampling, self._random.random())
        if self._counting:
            self._counts[token] = self._counts.get(token, 0) + 1
        return token


def random_numbers(seed: int | None, choice: int) -> np.random.Generator:
    """The choice's own stream of random numbers; without a seed, one that nobody can repeat."""
    return np.random.default_rng(None if seed is None else [seed % 2**64, choice])


def apply_repetition_penalty(logits: Logits, seen: Collection[int], penalty: float) -> None:
    """Divide the positive logits of seen tokens by `penalty`, multiply the negative ones, in place."""
    ids = np.fromiter(seen, np.int64, len(seen))
    values = logits[ids]
    logits[ids] = np.where(values > 0, values / penalty, values * penalty)


def apply_count_penalties(logits: Logits, counts: dict[int, int], presence: float, frequency: float) -> None:
    """Subtract `presence` once and `frequency` per occurrence from the generated tokens' logits, in place."""
    ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float32, len(counts))
    logits[ids] -= np.float32(presence) + np.float32(frequency) * times


def exclude(logits: Logits, ids: Sequence[int]) -> None:
    """Make tokens impossible, in place, unless nothing else is possible."""
    kept = logits[ids]
    logits[ids] = -np.inf
    if logits.max() == -np.inf:
        logits[ids] = kept


def sample(logits: Logits, best: np.float32, sampling: Sampling, uniform: float) -> int:
    """Draw a token after temperature, top_k, top_p and min_p; `best` is the largest logit. Changes logits in place."""
    if 0 < sampling.top_k < len(logits):
        candidates = top_k_ids(logits, sampling.top_k)
        weights = np.exp((logits[candidates] - best) / np.float32(sampling.temperature))
    else:
        candidates = None
        logits -= best
        logits /= np.float32(sampling.temperature)
        weights = np.exp(logits, out=logits)
    kept = nucleus(weights, sampling.top_p) if sampling.top_p < 1 else None
    if kept is not None:
        weights = weights[kept]
    if sampling.min_p > 0:  # the best token's weight is 1
        weights *= weights >= sampling.min_p
    index = draw(weights, uniform)
    index = index if kept is None else int(kept[index])
    return index if candidates is None else int(candidates[index])


def top_k_ids(logits: Logits, k: int) -> NDArray[np.int64]:
    """The ids of the k largest logits, in ascending order of id; which of equal ones stay at the edge is left open."""
    ids: NDArray[np.int64] = np.argpartition(logits, -k)[-k:]
    ids.sort()
    return ids


def nucleus(weights: Logits, top_p: float) -> NDArray[np.int64]:
    """Indices, ascending, of the fewest largest weights that hold at least `top_p` of their sum; at least one.

    Weights below (1 - top_p) / n of the sum hold less than 1 - top_p of it together, so the nucleus lies wholly above
    that line and only what is above needs sorting.
    """
    total = float(weights.sum(dtype=np.float64))
    above = np.flatnonzero(weights >= 0.999 * total * (1 - top_p) / len(weights))  # 0.999: room for rounding
    candidates = weights[above]
    held = np.cumsum(np.sort(candidates)[::-1], dtype=np.float64)
    count = min(int(np.searchsorted(held, total * top_p)) + 1, len(above))
    return above[top_k_ids(candidates, count)]


def draw(weights: Logits, uniform: float) -> int:
    """The index at which the running sum of the weights passes `uniform` (0 <= uniform < 1) of their total."""
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
    target = uniform * float(blocks.sum())
    block, before = _passes(blocks, target)
    index, _ = _passes(weights[block * _BLOCK : (block + 1) * _BLOCK], target - before)
    return block * _BLOCK + index


def _passes(weights: NDArray[np.floating], target: float) -> tuple[int, float]:
    """The first index whose running sum is greater than `target`, and the sum before it."""
    sums = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(sums, target, side="right"))
    if index == len(sums):  # rounding put the target at the very end: take the last index that has any weight
        index = int(np.flatnonzero(weights)[-1])
    return index, float(sums[index - 1]) if index else 0.0


def log_softmax(logits: Logits) -> Logits:
    """Natural log-probabilities, shape (vocab,)."""
    shifted = logits - logits.max()
    logprobs: Logits = shifted - np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))
    return logprobs


def score(logits: Logits, token: int, top: int) -> Scored:
    """The token with its log-probability and the `top` most likely tokens, most likely first.

    Reads the logits as the model gave them: before bias, penalties, temperature and any mask.
    """
    logprobs = log_softmax(logits)
    if not top:
        return Scored(token, float(logprobs[token]))
    best = top_k_ids(logprobs, min(top, len(logprobs)))
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return Scored(token, float(logprobs[token]), best.tolist(), logprobs[best].tolist())
