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
    """The keys and values of one sequence. Rows 0..length-1 are valid."""

    @property
    def length(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """The size of the valid rows in bytes."""

    def truncate(self, length: int) -> None:
        """Keep the first `length` rows, 0 <= length <= self.length. Moves no data."""

    def copy_from(self, other: KVCache, length: int) -> None:
        """Replace the rows by a copy of the first `length` rows of `other`, a cache of the same decoder."""

    def snapshot(self) -> KVCache:
        """A copy of the valid rows, no larger than they are. It is only a source for `copy_from`."""


class DecoderSpec(Struct, frozen=True, kw_only=True):
    """The properties of a decoder that the token loop needs."""

    vocab_size: int
    context_length: int  # most rows of a cache
    prompt_width: int  # most ids of one `prefill` or `verify` call
    device: Device
    #: width of a graph -> time of a call with up to that number of ids, in single steps; empty: graphs of any width
    pass_costs: dict[int, float] = field(default_factory=dict)
    placement: dict[str, int] = field(default_factory=dict)  # execution provider -> number of graph nodes
    soc: int | None = None  # Qualcomm's number of the NPU's chip; None: unknown, or no NPU
    mode_refusal: str = ""  # why the NPU's driver refuses burst mode; "": it accepts it, or there is no NPU
    greedy_only: bool = False  # True: the logits have no known scale, so that only their order is right
    shared_prompt_rows: int = 0  # most ids of one `prefill_together` call; 0: the decoder has no call of that kind
    is_batch_invariant: bool = False  # True: logits are bit-identical for any batch size and chunking, as measured


class Decoder(Protocol):
    """Seam 2: token ids in, logits out. Synchronous, for one thread, without text.

    Each call appends the keys and values of its ids to the caches, before it returns. The caller makes sure that no
    cache grows past `spec.context_length`. Returned logits can be a view that the next call overwrites. The caller can
    change them in place.

    Example, greedy decoding:

        token = int(decoder.prefill(cache, prompt_ids).argmax())
        token = int(decoder.step([cache], [token])[0].argmax())
    """

    @property
    def spec(self) -> DecoderSpec: ...

    def new_cache(self) -> KVCache:
        """An empty cache. The number of caches was fixed when the decoder was opened."""

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        """Append a chunk of a prompt.

        Args:
            cache: the sequence's cache.
            ids: 1..spec.prompt_width token ids.

        Returns: the logits after the last id, float32 (vocab,).

        Raises EngineFailed if the device call fails. The cache's rows can be wrong then.
        """

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        """Append one token to each of several sequences, in one or more device calls.

        Args:
            caches: the sequences' caches, each at most once.
            ids: one token id for each cache.

        Returns: the logits after each token, float32 (len(ids), vocab).

        Raises EngineFailed if a device call fails. The rows of all these caches can be wrong then.
        """

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        """Append several tokens and get the logits after each one. To reject tokens, truncate the cache afterwards.

        Args:
            cache: the sequence's cache.
            ids: 1..spec.prompt_width token ids.

        Returns: the logits after each id, float32 (len(ids), vocab).

        Raises EngineFailed if the device call fails. The cache's rows can be wrong then.
        """

    def free_caches(self) -> None:
        """Give the memory of all caches back, as far as the device allows it. They are empty, and stay usable."""

    def close(self) -> None:
        """Release the device and the memory. No other call can follow."""


class PromptSharing(Protocol):
    """A decoder whose `spec.shared_prompt_rows` is not 0."""

    def prefill_together(self, caches: Sequence[KVCache], ids: Sequence[Sequence[int]]) -> Logits:
        """Append the same number of tokens to each of several sequences.

        Args:
            caches: the sequences' caches, each at most once.
            ids: the token ids for each cache, at most `spec.shared_prompt_rows` in all.

        Returns: the logits after the last token of each, float32 (len(caches), vocab).

        Raises EngineFailed if a device call fails. The rows of all these caches can be wrong then.
        """
