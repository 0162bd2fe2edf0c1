"""The decoder for bundles of fixed shape: one chain of graphs for prompt windows and one for single steps.

The graphs run on the NPU if they are compiled, else on the CPU provider. Tests compare the two.

1. A bundle can have the chains for several context lengths: the longest in its root folder, shorter ones in folders
   `context-*`. A sequence starts in the shortest context and moves on when it is full, because attention costs the
   same for empty rows as for valid ones.
2. Bundles of our builder have a third chain for batched steps, and a fourth one with a narrow window for drafts.
3. Several tokens take the narrowest window for all of them. Near the end of a context a full window may not fit,
   although the tokens do. Then they take several narrower windows or steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from gateway.qnn.sessions import PerformanceSwitch
from gateway.worker.decoders.base import DecoderSpec, KVCache, Logits
from gateway.worker.decoders.static.batch import BatchStep
from gateway.worker.decoders.static.cache import CacheMemory, StaticCache
from gateway.worker.decoders.static.window import Window


class StaticDecoder:
    """Implements Decoder with graphs of fixed shape.

    Args:
        prompts: the windows for prompts, one per context length, shortest first.
        steps: the windows of width 1, in the same order.
        narrow: the narrow windows, in the same order; may be empty.
        batch_steps: the chains for batched steps, in the same order; may be empty.
        min_batch: smallest number of sequences that share a call.
        spec: see Decoder.
        memory: the device memory for the caches that the host can access, or None.
        switch: entered around every device call.
    """

    def __init__(
        self,
        prompts: Sequence[Window],
        steps: Sequence[Window],
        spec: DecoderSpec,
        *,
        narrow: Sequence[Window] = (),
        batch_steps: Sequence[BatchStep] = (),
        min_batch: int = 2,
        memory: Any = None,
        switch: PerformanceSwitch | None = None,
    ) -> None:
        self._prompts = list(prompts)
        self._steps = list(steps)
        self._narrow = list(narrow)
        self._batch_steps = list(batch_steps)
        self._min_batch = min_batch
        self._spec = spec
        self._caches = 0
        self._memory = CacheMemory(memory)
        self._rows: Logits = np.empty((0, 0), np.float32)
        self._switch = switch
        self._busy: AbstractContextManager[None] = switch or nullcontext()

    @property
    def spec(self) -> DecoderSpec:
        return self._spec

    @property
    def batch_size(self) -> int:
        """The most sequences of one batched step; 1 without a graph for batched steps."""
        return self._batch_steps[0].size if self._batch_steps else 1

    @property
    def narrow_width(self) -> int:
        """The width of the narrow windows; 0: there are none."""
        return self._narrow[0].width if self._narrow else 0

    def new_cache(self) -> StaticCache:
        self._caches += 1
        return StaticCache(self._memory, self._caches - 1)

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        last: Logits = self._extend(_static(cache), ids, logit_rows=1)[-1]
        return last

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        return self._extend(_static(cache), ids, logit_rows=len(ids))

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        if len(caches) == 1:
            return self._extend(_static(caches[0]), ids, logit_rows=1)
        own = [_static(cache) for cache in caches]
        calls = [call for group in self._groups(own) for call in self._calls([own[index] for index in group], group)]
        if len(calls) == 1:
            return self._step(own, ids)
        logits = self._rows_of_calls(len(ids))
        for call in calls:
            logits[call] = self._step([own[index] for index in call], [ids[index] for index in call])
        return logits

    def _groups(self, caches: Sequence[StaticCache]) -> Iterable[list[int]]:
        """The indices of `caches`, grouped by the shared tensors of their batched steps."""
        groups: dict[int, list[int]] = {}
        for index, cache in enumerate(caches):
            groups.setdefault(cache.index // self.batch_size, []).append(index)
        return groups.values()

    def _calls(self, caches: Sequence[StaticCache], indices: list[int]) -> list[list[int]]:
        """The indices of a group, those of each device call."""
        is_batched = len(caches) >= self._min_batch and self._batch_step(caches) is not None
        return [indices] if is_batched else [[index] for index in indices]

    def _batch_step(self, caches: Sequence[StaticCache]) -> BatchStep | None:
        return next((batch_step for batch_step in self._batch_steps if batch_step.fits(caches)), None)

    def _step(self, caches: Sequence[StaticCache], ids: Sequence[int]) -> Logits:
        """A step in one device call."""
        batch_step = self._batch_step(caches) if len(caches) >= self._min_batch else None
        if batch_step is None:
            return self._extend(caches[0], ids, logit_rows=1)
        with self._busy:
            return batch_step.run(caches, ids)

    def _rows_of_calls(self, count: int) -> Logits:
        """Float32 (count, vocab), which the next step overwrites."""
        if len(self._rows) < count:
            self._rows = np.empty((count, self._spec.vocab_size), np.float32)
        return self._rows[:count]

    def free_caches(self) -> None:
        """Free the tensors that no cache uses. Those of a cache have a fixed size, and the next request needs them."""
        self._memory.clear()
        self._release_dropped()

    def close(self) -> None:
        if self._switch:
            self._switch.close()
        self._prompts.clear()
        self._steps.clear()
        self._narrow.clear()
        self._batch_steps.clear()

    def _extend(self, cache: StaticCache, ids: Sequence[int], logit_rows: int) -> Logits:
        """Append `ids`; the logits of the last `logit_rows` of them."""
        rows: list[Logits] = []
        left = list(ids)
        while left:
            window = self._window(cache.length, len(left), min(logit_rows, len(left)))
            chunk, left = left[: window.width], left[window.width :]
            logits = self._run(window, cache, chunk, min(len(chunk), max(1, logit_rows - len(left))))
            if not left and not rows:
                return logits
            rows.append(logits.copy())
        return np.concatenate(rows)[-logit_rows:]

    def _run(self, window: Window, cache: StaticCache, ids: Sequence[int], logit_rows: int) -> Logits:
        with self._busy:
            logits = window.run(cache, ids, logit_rows)
            self._release_dropped()
            return logits

    def _release_dropped(self) -> None:
        if self._memory.has_dropped:
            self._memory.has_dropped = False
            for window in (*self._prompts, *self._narrow, *self._steps):
                window.release()  # it would keep the dropped tensors in memory

    def _window(self, length: int, count: int, logit_rows: int) -> Window:
        """The narrowest window that takes all ids, else the widest one that takes some. The caller checks the context.

        Args:
            length: rows of the cache.
            count: ids to append.
            logit_rows: ids whose logits are needed.
        """
        kinds = (self._steps, self._narrow, self._prompts)
        fitting = [window for windows in kinds if (window := self._fitting(windows, length, count)) is not None]
        usable = [window for window in fitting if min(logit_rows, window.width) <= window.max_logit_rows]
        return next((window for window in usable if window.width >= count), usable[-1])

    def _fitting(self, windows: Sequence[Window], length: int, count: int) -> Window | None:
        """The window of the shortest context that has free rows for `count` ids, or for a full window of them."""
        return next((window for window in windows if window.fits(length, min(count, window.width))), None)


def _static(cache: KVCache) -> StaticCache:
    assert isinstance(cache, StaticCache)
    return cache
