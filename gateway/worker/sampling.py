"""From logits to a token: pure functions over one row of logits, float32 (vocab,).

The order is that of most model cards: bias and penalties, then temperature, top_k, top_p, min_p, then one draw. Each
token uses one uniform number. So the same seed gives the same tokens from single steps, batched steps and drafts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from gateway.errors import InvalidRequest
from gateway.sampling import Sampling
from gateway.worker.decoders.base import Logits
from gateway.worker.frames import Scored
from gateway.worker.repetition import RepetitionPenalty

_GREEDY_BELOW = 1e-5  # logits divided by a lower temperature overflow or lose their differences in float32
_BLOCK = 256


class Sampler:
    """Chooses the tokens of one choice, and counts them for the penalties.

    Args:
        prompt: the prompt's tokens, for the repetition penalty.
        choice: index of the choice; each choice of a seeded request has its own random numbers.
        token_bytes: the text of a token, for DRY.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Collection[int],
        choice: int,
        token_bytes: Callable[[int], bytes] = lambda token: b"",
    ) -> None:
        self._sampling = sampling
        self._random = random_numbers(sampling.seed, choice)
        self._prompt = set(prompt) if sampling.repetition_penalty != 1 else set()
        self._counts: dict[int, int] = {}
        self._counting = sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        self._counting |= sampling.repetition_penalty != 1
        self._dry = RepetitionPenalty(sampling, token_bytes) if sampling.dry_multiplier else None
        self._bias_ids = np.fromiter(sampling.logit_bias.keys(), np.int64)
        self._biases = np.fromiter(sampling.logit_bias.values(), np.float32)

    def adjust(self, logits: Logits) -> None:
        """Apply bias and penalties to the logits, in place."""
        if len(self._bias_ids):
            logits[self._bias_ids] += self._biases
        if self._dry:
            self._dry.apply(logits)
        if not self._counting:
            return
        sampling = self._sampling
        if sampling.repetition_penalty != 1:
            apply_repetition_penalty(logits, self._prompt | self._counts.keys(), sampling.repetition_penalty)
        if self._counts:
            apply_count_penalties(logits, self._counts, sampling.presence_penalty, sampling.frequency_penalty)

    def choose(self, logits: Logits) -> int:
        """Choose the next token from adjusted logits, which can change in place. Counts the token for the penalties.

        The loop has checked the device's own logits, so what makes them unusable here is the request.

        Raises InvalidRequest if no token is possible.
        """
        token = int(logits.argmax())
        best = logits[token]
        if not math.isfinite(best):
            raise InvalidRequest("No token is possible: logit_bias, penalties and grammar together exclude every one.")
        if not is_greedy(self._sampling):
            token = sample(logits, best, self._sampling, self._random.random())
        if self._dry:
            self._dry.append(token)
        if self._counting:
            self._counts[token] = self._counts.get(token, 0) + 1
        return token


def is_greedy(sampling: Sampling) -> bool:
    """True if the most likely token is always chosen."""
    return sampling.temperature < _GREEDY_BELOW


def random_numbers(seed: int | None, choice: int) -> np.random.Generator:
    """The random numbers of a choice. Without a seed they differ on each call."""
    return np.random.default_rng(None if seed is None else [seed % 2**64, choice])


def apply_repetition_penalty(logits: Logits, seen: Collection[int], penalty: float) -> None:
    """Divide the positive logits of seen tokens by `penalty` and multiply their negative logits, in place."""
    ids = np.fromiter(seen, np.int64, len(seen))
    values = logits[ids]
    logits[ids] = np.where(values > 0, values / penalty, values * penalty)


def apply_count_penalties(logits: Logits, counts: dict[int, int], presence: float, frequency: float) -> None:
    """Subtract `presence` once and `frequency` per occurrence from the logits of generated tokens, in place."""
    ids = np.fromiter(counts.keys(), np.int64, len(counts))
    times = np.fromiter(counts.values(), np.float32, len(counts))
    logits[ids] -= np.float32(presence) + np.float32(frequency) * times


def exclude(logits: Logits, ids: Sequence[int]) -> None:
    """Set the logits of `ids` to -inf, in place, unless no other token is possible."""
    kept = logits[ids]
    logits[ids] = -np.inf
    if logits.max() == -np.inf:
        logits[ids] = kept


def sample(logits: Logits, best: np.float32, sampling: Sampling, uniform: float) -> int:
    """Draw a token after temperature, top_k, top_p and min_p. Changes the logits in place.

    Args:
        best: the largest logit.
        uniform: the random number, 0 <= uniform < 1.
    """
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
    """The ids of the k largest logits, ascending by id. Which of several equal ones are included is not specified."""
    ids: NDArray[np.int64] = np.argpartition(logits, -k)[-k:]
    ids.sort()
    return ids


def nucleus(weights: Logits, top_p: float) -> NDArray[np.int64]:
    """Indices, ascending, of the fewest largest weights whose sum is at least `top_p` of the total; at least one.

    All weights below (1 - top_p) / n of the total together have less than 1 - top_p of it. So the nucleus has only
    weights above that threshold, and only those need sorting.
    """
    total = float(weights.sum(dtype=np.float64))
    above = np.flatnonzero(weights >= 0.999 * total * (1 - top_p) / len(weights))  # 0.999: rounding
    candidates = weights[above]
    held = np.cumsum(np.sort(candidates)[::-1], dtype=np.float64)
    count = min(int(np.searchsorted(held, total * top_p)) + 1, len(above))
    return above[top_k_ids(candidates, count)]


def draw(weights: Logits, uniform: float) -> int:
    """The index at which the running sum of the weights exceeds `uniform` (0 <= uniform < 1) times their total."""
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK), dtype=np.float64)
    target = uniform * float(blocks.sum())
    block, before = _passes(blocks, target)
    index, _ = _passes(weights[block * _BLOCK : (block + 1) * _BLOCK], target - before)
    return block * _BLOCK + index


def _passes(weights: NDArray[np.floating], target: float) -> tuple[int, float]:
    """The first index whose running sum is above `target`, and the sum before it."""
    sums = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(sums, target, side="right"))
    if index == len(sums):  # rounding moved the target to the end: the last index with a weight
        index = int(np.flatnonzero(weights)[-1])
    return index, float(sums[index - 1]) if index else 0.0


def log_softmax(logits: Logits) -> Logits:
    """Natural log-probabilities, shape (vocab,)."""
    shifted = logits - logits.max()
    logprobs: Logits = shifted - np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))
    return logprobs


def score(logits: Logits, token: int, top: int) -> Scored:
    """The token's log-probability and the `top` most likely tokens, most likely first.

    Args:
        logits: the model's own, before bias, penalties, temperature and mask.
    """
    logprobs = log_softmax(logits)
    if not top:
        return Scored(token, float(logprobs[token]))
    best = top_k_ids(logprobs, min(top, len(logprobs)))
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return Scored(token, float(logprobs[token]), best.tolist(), logprobs[best].tolist())
