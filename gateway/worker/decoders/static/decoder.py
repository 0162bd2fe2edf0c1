"""The decoder of bundles of fixed shape: a chain of graphs for a prompt's windows and one for single steps.

It runs them on the NPU, and on the CPU provider where they are not compiled, which is how one is compared with the
other.

1. A bundle may hold the chain for several context lengths: the longest at its root, shorter ones in its folders
   `context-*`. A cache starts in the shortest and moves on when it is full, because attention over rows that nobody
   has filled costs as much as over rows that matter.
2. Our own bundles have a third chain, for one step of several sequences in a call.
3. A full window may not fit the end of a context although its ids do; then the ids go one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from gateway.qnn.sessions import PerformanceSwitch
from gateway.worker.decoders.base import DecoderSpec, KVCache, Logits
from gateway.worker.decoders.static.batch import Batch
from gateway.worker.decoders.static.cache import StaticCache
from gateway.worker.decoders.static.window import Window


class StaticDecoder:
    """The Decoder over windows of fixed width.

    Args:
        prompts: the windows for prompts, one for each context length, shortest first.
        steps: the windows of width 1, likewise.
        batches: the chains for steps of several sequences, likewise; may be empty.
        min_batch: smallest number of sequences that share a call.
        spec: what the token loop must know.
        memory: the device's host-accessible memory for the caches, or None.
        switch: entered around every device call.
    """

    def __init__(
        self,
        prompts: Sequence[Window],
        steps: Sequence[Window],
        spec: DecoderSpec,
        *,
        batches: Sequence[Batch] = (),
        min_batch: int = 2,
        memory: Any = None,
        switch: PerformanceSwitch | None = None,
    ) -> None:
        self._prompts = list(prompts)
        self._steps = list(steps)
        self._batches = list(batches)
        self._min_batch = min_batch
        self._spec = spec
        self._caches = 0
        self._memory = memory
        self._switch = switch
        self._busy: AbstractContextManager[None] = switch or nullcontext()

    @property
    def spec(self) -> DecoderSpec:
        return self._spec

    @property
    def batch_size(self) -> int:
        """How many sequences can take a step in one call."""
        return self._batches[0].size if self._batches else 1

    def new_cache(self) -> StaticCache:
        self._caches += 1
        return StaticCache(self._memory, self._caches - 1)

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        last: Logits = self._extend(_static(cache), ids, keep=1)[-1]
        return last

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        return self._extend(_static(cache), ids, keep=len(ids))

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        own = [_static(cache) for cache in caches]
        logits = np.empty((len(ids), self._spec.vocab_size), np.float32)
        for places in self._companies(own):
            logits[places] = self._step([own[place] for place in places], [ids[place] for place in places])
        return logits

    def _companies(self, caches: Sequence[StaticCache]) -> Iterable[list[int]]:
        """The places of those that could share a call."""
        groups: dict[int, list[int]] = {}
        for place, cache in enumerate(caches):
            groups.setdefault(cache.number // self.batch_size, []).append(place)
        return groups.values()

    def _step(self, caches: Sequence[StaticCache], ids: Sequence[int]) -> Logits:
        batch = next((batch for batch in self._batches if batch.fits(caches)), None)
        if batch is None or len(caches) < self._min_batch:
            steps = [self._extend(cache, [token], keep=1) for cache, token in zip(caches, ids, strict=True)]
            return np.concatenate(steps)
        with self._busy:
            return batch.step(caches, ids)

    def close(self) -> None:
        if self._switch:
            self._switch.close()
        self._prompts.clear()
        self._steps.clear()
        self._batches.clear()

    def _extend(self, cache: StaticCache, ids: Sequence[int], keep: int) -> Logits:
        window = self._fitting(self._prompts, cache.length, len(ids)) if len(ids) > 1 else None
        if window is None or keep > window.logit_rows:
            return self._one_by_one(cache, ids)[-keep:]
        with self._busy:
            return window.run(cache, ids, keep)

    def _one_by_one(self, cache: StaticCache, ids: Sequence[int]) -> Logits:
        rows = []
        for token in ids:
            window = self._fitting(self._steps, cache.length, 1)
            assert window is not None, "the caller checks the context's length"
            with self._busy:
                rows.append(window.run(cache, [token], keep=1))
        return np.concatenate(rows)

    def _fitting(self, windows: Sequence[Window], length: int, count: int) -> Window | None:
        """The window of the shortest context that has room."""
        return next((window for window in windows if window.fits(length, count)), None)


def _static(cache: KVCache) -> StaticCache:
    assert isinstance(cache, StaticCache)
    return cache
