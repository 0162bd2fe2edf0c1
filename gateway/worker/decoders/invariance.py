"""Finds out whether a decoder is batch-invariant: whether logits are bit-identical for any batch size and chunking.

The kernels decide, so neither the processor's name nor the bundle's metadata can answer. The check computes a few rows
in one call and again in other calls, and compares the bits: a row alone, two, three and four rows, from even and odd
positions, the last row only, and two slots in one call: with one row each, and with four if the decoder shares prompts.
It takes up to 7 calls with 37 rows if the decoder is batch-invariant. Else it ends with the first difference, usually
in the second call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from gateway.worker.decoders.base import Decoder, KVCache, Logits, PromptSharing

_ROWS = 17  # one more than attention groups (builder/graphs/attention.py)
#: (first row, rows) of each call. Each call starts within the rows that the calls before it left.
_CALLS = ((0, 1), (1, 3), (1, 4))


def is_batch_invariant(decoder: Decoder, caches: Sequence[KVCache], block: int) -> bool:
    """Compare bits. Leaves the caches empty.

    Args:
        caches: one or more empty caches of the decoder.
        block: attention's largest block of queries. If it is narrower than a call, a call of one row more is compared.

    Raises EngineFailed if a device call fails.
    """
    spec = decoder.spec
    rows = _ROWS if block >= spec.prompt_width else block + 3
    if spec.context_length < rows:
        return False
    ids = [(11 + 37 * position) % spec.vocab_size for position in range(rows)]
    try:
        return _gives_same_bits(decoder, caches, ids, block)
    finally:
        for cache in caches:
            cache.truncate(0)


def _gives_same_bits(decoder: Decoder, caches: Sequence[KVCache], ids: Sequence[int], block: int) -> bool:
    one, *others = caches
    expected = decoder.verify(one, ids).copy()
    one.truncate(0)
    for start, count in _CALLS if len(ids) == _ROWS else (*_CALLS, (0, block + 1)):
        one.truncate(start)
        if not _same(decoder.verify(one, ids[start : start + count]), expected[start : start + count]):
            return False
    one.truncate(3)
    if not _same(decoder.prefill(one, ids[3:5]), expected[4]):
        return False
    return not others or _is_same_in_batch(decoder, one, others[0], ids, expected)


def _is_same_in_batch(decoder: Decoder, one: KVCache, other: KVCache, ids: Sequence[int], expected: Logits) -> bool:
    """Two sequences of different lengths in one call."""
    other.copy_from(one, 2)
    one.truncate(4)
    if not _same(decoder.step([one, other], [ids[4], ids[2]]), expected[[4, 2]]):
        return False
    if not decoder.spec.shared_prompt_rows:
        return True
    one.truncate(4)
    other.truncate(2)
    shared = cast(PromptSharing, decoder).prefill_together([one, other], [ids[4:8], ids[2:6]])
    return _same(shared, expected[[7, 5]])


def _same(logits: Logits, expected: Logits) -> bool:
    return np.array_equal(logits, expected)
