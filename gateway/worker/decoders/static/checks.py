"""Checks and times the graphs of a real NPU before it serves a model.

Windows are compared with single steps, and batched steps with single steps. All of them are timed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from gateway.errors import EngineFailed
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.self_test import is_close
from gateway.worker.decoders.static.cache import StaticCache
from gateway.worker.decoders.static.decoder import StaticDecoder

_log = logging.getLogger(__name__)
_LENGTHS = 4  # different sequence lengths in the check of batched steps


def is_consistent(decoder: StaticDecoder, count: int = 3) -> bool:
    """True if `count` tokens have nearly the same logits in one window and one by one.

    A window that gives the logits of its last row only is not used by `verify`, so `prefill` is compared too. The
    check runs two graphs and reads and writes the cache in place. It finds faults of a driver, mostly in shared memory,
    before a client gets wrong tokens.
    """
    ids, step_cache = range(1, count + 1), decoder.new_cache()
    try:
        window = decoder.verify(decoder.new_cache(), ids).copy()  # the next call overwrites its result
        last = decoder.prefill(decoder.new_cache(), ids).copy()
        steps = np.stack([decoder.step([step_cache], [token])[0].copy() for token in ids])
    except EngineFailed:
        return False
    return is_close(window, steps) and is_close(last[None], steps[-1:])


def agree(decoder: StaticDecoder, other: StaticDecoder) -> bool:
    """True if three tokens have nearly the same logits in two decoders of one model."""
    try:
        logits, expected = (each.verify(each.new_cache(), (1, 2, 3)) for each in (decoder, other))
    except EngineFailed:
        return False
    return is_close(logits, expected)


def min_batch(decoder: StaticDecoder, clock: Callable[[], float] = time.perf_counter) -> int:
    """The fewest sequences for which one batched step is faster than single steps, measured on this machine.

    Larger than the batch size if the batched step fails or its logits differ from those of single steps.
    """
    size = decoder.batch_size
    caches = [decoder.new_cache() for _ in range(size)]
    for index, cache in enumerate(caches):
        for token in range(index % _LENGTHS):
            decoder.step([cache], [token])
    ids = list(range(1, size + 1))
    single_s, single = _fastest(caches, lambda: _one_by_one(decoder, caches, ids), clock)
    try:
        batched_s, batched = _fastest(caches, lambda: decoder.step(caches, ids), clock)
    except EngineFailed:
        batched_s, batched = math.inf, np.full_like(single, np.nan)
    if is_close(batched, single):
        return max(2, math.ceil(batched_s / (single_s / size)))
    _log.warning("this NPU fails in batched steps or computes them wrongly: each sequence takes single steps")
    return size + 1


def pass_costs(decoder: StaticDecoder, clock: Callable[[], float] = time.perf_counter) -> dict[int, float]:
    """The measured `DecoderSpec.pass_costs`, each with as few ids as need that width."""
    cache, costs, narrower = decoder.new_cache(), {1: 1.0}, 1
    step_s, _ = _fastest([cache], lambda: decoder.step([cache], [1]), clock)
    for width in sorted(decoder.spec.pass_costs)[1:]:
        ids = range(narrower + 1)
        seconds, _ = _fastest([cache], lambda ids=ids: decoder.verify(cache, ids), clock)  # type: ignore[misc]
        costs[width], narrower = seconds / step_s, width
    return costs


def _one_by_one(decoder: StaticDecoder, caches: Sequence[StaticCache], ids: Sequence[int]) -> Logits:
    return np.stack([decoder.step([cache], [token])[0].copy() for cache, token in zip(caches, ids, strict=True)])


def _fastest(
    caches: Sequence[StaticCache], call: Callable[[], Logits], clock: Callable[[], float], tries: int = 3
) -> tuple[float, Logits]:
    """Seconds of the fastest call, and the logits. Resets the caches after each call."""
    lengths, seconds = [cache.length for cache in caches], []
    for _ in range(tries):
        started = clock()
        logits = call()
        seconds.append(clock() - started)
        for cache, length in zip(caches, lengths, strict=True):
            cache.truncate(length)
    return min(seconds), logits.copy()
