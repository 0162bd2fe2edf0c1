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
_FEW = 64  # logits in a block of `top_k_ids`
_SAMPLED = 4096  # weights that are sorted to find where a nucleus ends
_MARGIN = 256  # of these, before and after that position


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
    """The ids of the k largest logits, ascending by id. Which of several equal ones are included is not specified.

    If k blocks have a largest logit of at least x, then so have k logits. So only logits from x on are compared.
    """
    if len(logits) > k * _FEW:
        largest = np.maximum.reduceat(logits, np.arange(0, len(logits), _FEW))
        likely = np.flatnonzero(logits >= np.partition(largest, -k)[-k])
        if len(likely) >= k:  # not with NaN
            return likely[np.sort(np.argpartition(logits[likely], -k)[-k:])]
    ids: NDArray[np.int64] = np.argpartition(logits, -k)[-k:]
    ids.sort()
    return ids


def nucleus(weights: Logits, top_p: float) -> NDArray[np.int64]:
    """Indices, ascending, of the fewest largest weights whose sum is at least `top_p` of the total; at least one.

    All weights below (1 - top_p) / n of the total together have less than 1 - top_p of it. So the nucleus has only
    weights above that threshold. Of several equal weights at the end of the nucleus, it has the first ones.
    """
    total = float(weights.sum(dtype=np.float64))
    above = np.flatnonzero(weights >= 0.999 * total * (1 - top_p) / len(weights))  # 0.999: rounding
    is_flat = len(above) > _SAMPLED  # then a pass over all is faster than a copy of most
    candidates = weights if is_flat else weights[above]
    smallest, equal = _smallest_kept(candidates, total * top_p, top_p)
    kept = np.flatnonzero(candidates >= smallest)
    last = np.flatnonzero(candidates[kept] == smallest)
    if len(last) > equal:
        kept = np.delete(kept, last[equal:])
    return kept if is_flat else above[kept]


def _smallest_kept(weights: Logits, target: float, share: float) -> tuple[np.float32, int]:
    """The smallest of the fewest largest weights whose sum is at least `target`, and how many equal ones they have.

    A sort of every n-th weight shows about where it is. Only the weights near there are sorted, if the sums prove that
    it is one of them; otherwise all of them.

    Args:
        share: about what part of the sum of all weights `target` is.
    """
    near, before = weights, 0.0
    if len(weights) > 4 * _SAMPLED:
        sample = np.sort(weights[:: len(weights) // _SAMPLED])[::-1]
        sums = np.cumsum(sample, dtype=np.float64)
        index = int(np.searchsorted(sums, sums[-1] * share))
        high, low = sample[max(index - _MARGIN, 0)], sample[min(index + _MARGIN, len(sample) - 1)]
        held = float(np.multiply(weights, weights > high).sum(dtype=np.float64))
        some = weights[np.flatnonzero((weights >= low) & (weights <= high))]
        if held < target <= held + float(some.sum(dtype=np.float64)):
            near, before = some, held
    falling = np.sort(near)[::-1]
    index = min(int(np.searchsorted(before + np.cumsum(falling, dtype=np.float64), target)), len(falling) - 1)
    smallest = falling[index]
    return smallest, index + 1 - int(np.searchsorted(-falling, -smallest))


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
    logprobs: Logits = (logits - logits.max()) - _log_total(logits)
    return logprobs


def _log_total(logits: Logits) -> np.float32:
    """The logarithm of the sum of the exponentials of all logits minus the largest."""
    shifted = logits - logits.max()
    return np.float32(np.log(np.exp(shifted, out=shifted).sum(dtype=np.float64)))


def score(logits: Logits, token: int, top: int) -> Scored:
    """The token's log-probability and the `top` most likely tokens, most likely first.

    Args:
        logits: the model's own, before bias, penalties, temperature and mask.
    """
    largest, total = logits.max(), _log_total(logits)
    logprob = float((logits[token] - largest) - total)
    if not top:
        return Scored(token, logprob)
    best = top_k_ids(logits, min(top, len(logits)))
    logprobs = (logits[best] - largest) - total
    order = np.argsort(-logprobs, kind="stable")
    return Scored(token, logprob, best[order].tolist(), logprobs[order].tolist())
