"""A tiny decoder with the interface of the context binaries that AI Hub and Genie use. Tests compile it.

It has one layer, quantised like the published models: uint16 activations, int8 weights per output channel, uint8 keys
and values with zero point 128. Two graphs have the same cache layout, one for `width` tokens and one for one token:

    input_ids int32 (1, width) · attention_mask uint16 (1, 1, width, context)
    position_ids_cos/sin uint16 (1, 1, width, head_dim/2)
    past_key_0_in uint8 (heads, 1, head_dim, context - width)
    past_value_0_in uint8 (heads, 1, context - width, head_dim)
    -> logits uint16 (1, width, vocab) · past_key_0_out · past_value_0_out: the `width` new columns and rows

The host fills the cache from the left. The mask marks the valid columns, and the current tokens at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], Sequence[Array]]  # feeds -> (logits, new keys, new values)

PROMPT_WIDTH = 8
LAGS = (5, 13)


@dataclass(frozen=True)
class Encoding:
    """Affine quantisation: value = (code - zero) * scale."""

    low: float
    high: float
    dtype: type[np.unsignedinteger[Any]] = np.uint16

    @property
    def scale(self) -> np.float32:
        return np.float32((self.high - self.low) / np.iinfo(self.dtype).max)

    @property
    def zero(self) -> Any:
        return self.dtype(round(-self.low / float(self.scale)))

    def quantise(self, values: Array) -> Array:
        codes = np.round(values / self.scale) + int(self.zero)
        return np.clip(codes, 0, np.iinfo(self.dtype).max).astype(self.dtype)


UNIT = Encoding(-1.0, 1.0)
HIDDEN = Encoding(-10.0, 10.0)
CACHE_LIMITS = (-8.0, 8.0 * 127 / 128)  # with these limits the zero point of uint8 is 128
HEADS = Encoding(*CACHE_LIMITS)
CACHE = Encoding(*CACHE_LIMITS, np.uint8)
MASK = Encoding(-500.0, 0.0)
LOGITS = Encoding(-64.0, 64.0)
INPUTS = {
    "attention_mask": MASK,
    "position_ids_cos": UNIT,
    "position_ids_sin": UNIT,
    "past_key_0_in": CACHE,
    "past_value_0_in": CACHE,
}


@dataclass(frozen=True)
class TinyDecoder:
    """Each token has two successors. The next token is the first successor of the token `LAGS[0]` positions back; if
    that token is odd, it is the second successor of the token `LAGS[1]` positions back.

    So a wrong cache row changes a greedy answer within a few tokens. The logits are far apart, so that the different
    rounding of the graphs never changes an answer.

    Args:
        stop_trigger: the token whose successor is `stop_id`.
        first_plain: other successors are ids from here on.
    """

    vocab_size: int = 128
    heads: int = 2
    head_dim: int = 128
    context: int = 128
    stop_id: int = 3
    stop_trigger: int = 4
    first_plain: int = 4
    seed: int = 7

    @cached_property
    def successors(self) -> Array:
        """The successors of each token at distance LAGS[0] (row 0) and LAGS[1] (row 1), (2, vocab)."""
        random = np.random.default_rng(self.seed)
        plain = np.arange(self.first_plain, self.vocab_size)
        successors = random.choice(plain, (len(LAGS), self.vocab_size))
        successors[:, self.first_plain :] = [random.permutation(plain) for _ in LAGS]
        successors[:, self.stop_trigger] = self.stop_id
        return successors

    @cached_property
    def weights(self) -> dict[str, Array]:
        one_hot = np.eye(self.vocab_size, dtype=np.float32)
        successors = np.concatenate([one_hot[row] for row in self.successors])
        strengths = [np.where(np.arange(self.vocab_size) % 2, 2, 6), np.full(self.vocab_size, 4)]
        queries = np.concatenate(
            [np.concatenate([np.cos(lag * self._speeds), -np.sin(lag * self._speeds)]) for lag in LAGS]
        )
        keys = np.tile(np.repeat([1.0, 0.0], self.head_dim // 2), self.heads)
        weights = {
            "embedding": one_hot,
            "q": np.tile(6 * queries, (self.vocab_size, 1)),
            "k": np.tile(6 * keys, (self.vocab_size, 1)),
            "v": np.concatenate([one_hot * strength for strength in strengths], axis=1),
            "o": successors,
            "head": 2 * one_hot,
        }
        return {name: np.asarray(weight, np.float32) for name, weight in weights.items()}

    @property
    def _speeds(self) -> Array:
        """Rotary angle per position of each pair of a head, radians."""
        return 1.0 / 10000.0 ** (np.arange(0, self.head_dim, 2) / self.head_dim)

    def rotary(self, positions: Sequence[int]) -> tuple[Array, Array]:
        """Quantised cosines and sines, each (1, 1, len(positions), head_dim/2)."""
        angles = np.outer(positions, self._speeds).astype(np.float32)[None, None]
        return UNIT.quantise(np.cos(angles)), UNIT.quantise(np.sin(angles))

    def logits(self, ids: Sequence[int]) -> Array:
        """The logits after each of `ids` without any quantisation, float64 (len(ids), vocab)."""
        angles = np.outer(np.arange(len(ids)), self._speeds)
        weights = {name: weight.astype(np.float64) for name, weight in self.weights.items()}
        hidden = weights["embedding"][list(ids)]

        def heads(name: str) -> Array:
            return (hidden @ weights[name]).reshape(len(ids), self.heads, self.head_dim).swapaxes(0, 1)

        def rotated(values: Array) -> Array:
            lower, upper = np.split(values, 2, axis=-1)
            cosines, sines = np.cos(angles), np.sin(angles)
            return np.concatenate([lower * cosines - upper * sines, upper * cosines + lower * sines], axis=-1)

        scores = rotated(heads("q")) @ rotated(heads("k")).swapaxes(1, 2) * self.head_dim**-0.5
        scores[:, np.triu_indices(len(ids), 1)[0], np.triu_indices(len(ids), 1)[1]] = -np.inf
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (shares / shares.sum(axis=-1, keepdims=True)) @ heads("v")
        attended = mixed.swapaxes(0, 1).reshape(len(ids), -1) @ weights["o"]
        result: Array = (attended + hidden) @ weights["head"]
        return result

    def is_greedy(self, ids: Sequence[int], answer: Sequence[int]) -> bool:
        """True if `answer` is the greedy continuation of `ids` without any quantisation."""
        best = self.logits([*ids, *answer])[len(ids) - 1 : -1].argmax(axis=1)
        return best.tolist() == list(answer)

    def greedy(self, prompt_run: Run, step_run: Run, ids: Sequence[int], count: int) -> list[int]:
        """The `count` greedy tokens after `ids`: a plain decode loop over the two graphs."""
        cache = _Cache(self)
        for start in range(0, len(ids), PROMPT_WIDTH):
            chunk = ids[start : start + PROMPT_WIDTH]
            row = cache.append(prompt_run, PROMPT_WIDTH, chunk)
        answer = [int(row.argmax())]
        while len(answer) < count:
            answer.append(int(cache.append(step_run, 1, answer[-1:]).argmax()))
        return answer


class _Cache:
    """Keys and values of one sequence, filled from the left; rows 0..length-1 are valid."""

    def __init__(self, decoder: TinyDecoder) -> None:
        self.decoder = decoder
        self.length = 0
        shape = (decoder.heads, 1, decoder.head_dim, decoder.context)
        self.keys = np.full(shape, int(CACHE.zero), np.uint8)
        self.values = np.ascontiguousarray(self.keys.swapaxes(2, 3))

    def append(self, run: Run, width: int, ids: Sequence[int]) -> Array:
        """Append 1..width ids. Returns: the logits after the last one, (vocab,)."""
        context, used = self.decoder.context, len(ids)
        mask = np.full((1, 1, width, context), MASK.low, np.float32)
        for row in range(used):
            mask[..., row, : self.length] = 0
            mask[..., row, context - width : context - width + row + 1] = 0
        padding = [0] * (width - used)
        cosines, sines = self.decoder.rotary([self.length + row for row in range(used)] + padding)
        logits, keys, values = run(
            {
                "input_ids": np.array([[*ids, *padding]], np.int32),
                "attention_mask": MASK.quantise(mask),
                "position_ids_cos": cosines,
                "position_ids_sin": sines,
                "past_key_0_in": np.ascontiguousarray(self.keys[..., : context - width]),
                "past_value_0_in": np.ascontiguousarray(self.values[:, :, : context - width]),
            }
        )
        self.keys[..., self.length : self.length + used] = keys[..., :used]
        self.values[:, :, self.length : self.length + used] = values[:, :, :used]
        self.length += used
        return logits[0, used - 1]
