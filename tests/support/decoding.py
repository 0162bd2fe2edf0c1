"""Ways to run a decoder in tests: prompts in windows, greedy answers, comparison with the float32 oracle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.worker.decoders.base import Decoder, KVCache, Logits
from tests.support.oracle import Oracle

IDS = [11, 50, 7, 90, 33, 5, 64, 71, 20, 98, 41, 13, 77, 36, 102, 9, 58]


def prefill(decoder: Decoder, cache: KVCache, ids: Sequence[int], width: int = 8) -> Logits:
    """Append `ids` in windows of `width`; the logits after the last one, (vocab,)."""
    for start in range(0, len(ids), width):
        logits = decoder.prefill(cache, ids[start : start + width])
    return logits.copy()


def greedy(decoder: Decoder, ids: Sequence[int], count: int) -> list[int]:
    """The `count` tokens after `ids`: prefill in windows, then single steps."""
    cache = decoder.new_cache()
    logits = prefill(decoder, cache, ids)
    answer: list[int] = []
    while len(answer) < count:
        answer.append(int(logits.argmax()))
        logits = decoder.step([cache], answer[-1:])[0]
    return answer


def matches_oracle(answer: Sequence[int], oracle: Oracle, ids: Sequence[int], min_equal: int) -> bool:
    """True if the answer equals float32's answer.

    The answers may differ from token `min_equal` on, if float32's two best logits there are less than 0.5 apart.
    """
    expected, logits = oracle.greedy(list(ids), len(answer))
    pairs = enumerate(zip(answer, expected, strict=True))
    first_difference = next((index for index, pair in pairs if len(set(pair)) > 1), None)
    if first_difference is None:
        return True
    second, best = np.sort(logits[first_difference])[-2:]
    return first_difference >= min_equal and bool(best - second < 0.5)
