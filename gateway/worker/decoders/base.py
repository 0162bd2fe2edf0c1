"""Seam 2: a `Decoder` turns token ids into logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from gateway.worker.frames import Device

Logits = NDArray[np.float32]


class KVCache(Protocol):
    """The keys and values of one sequence: rows 0..length-1 are valid."""

    @property
    def length(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    def truncate(self, length: int) -> None:
        """Keep the first `length` rows (0 <= length <= self.length); nothing is moved."""

    def copy_from(self, other: KVCache, length: int) -> None:
        """Become a copy of the first `length` rows of `other`, a cache of the same decoder."""

    def snapshot(self) -> KVCache:
        """A copy of the valid rows that takes no more memory than they do and is only for `copy_from`."""


class DecoderSpec(Struct, frozen=True, kw_only=True):
    """What the token loop must know of a decoder."""

    vocab_size: int
    context_length: int
    prompt_width: int  # the most ids one `prefill` or `verify` call takes
    device: Device
    placement: dict[str, int] = field(default_factory=dict)
    is_batch_invariant: bool = False  # a token's logits are the same bits computed alone, in company, and among several


class Decoder(Protocol):
    """Seam 2: token ids in, logits out. Synchronous, one thread, no text, no JSON.

    Returned logits are float32 and may be a view that the next call overwrites; the caller may change them in place.
    Every call appends to the cache(s) it is given and raises EngineFailed when the device refuses. A cache never
    grows past `spec.context_length`: the caller checks before it calls.
    """

    @property
    def spec(self) -> DecoderSpec: ...

    def new_cache(self) -> KVCache: ...

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        """Append 1..prompt_width ids; the logits after the last of them, shape (vocab,)."""

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        """Append one id to each cache; logits of shape (len(ids), vocab)."""

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        """Append 1..prompt_width ids; the logits after each of them, shape (len(ids), vocab)."""

    def close(self) -> None:
        """Give the device and the memory back."""
