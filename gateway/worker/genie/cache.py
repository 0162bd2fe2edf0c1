"""What the cache of a dialog holds, and how much of it the next prompt can use."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.bundles.kv_cache.common_prefix import common_prefix


class CacheContent:
    """The owner and the tokens of the dialog's cache.

    Args:
        contexts: the context lengths of the graphs, in ascending order. A conversation that outgrows one of them moves
            to the next, and cannot move back.
        width: tokens of one pass.
    """

    def __init__(self, contexts: Sequence[int], width: int) -> None:
        self._contexts, self._width = contexts, width
        self._owner = ""
        self._ids: Sequence[int] = ()
        self._computed = 0  # the first tokens, which are certainly computed

    def forget(self) -> None:
        """The cache is empty, or its content is unknown."""
        self._ids, self._computed = (), 0

    def hold(self, owner: str, ids: Sequence[int], computed: int) -> None:
        """The cache holds `ids` now. The first `computed` of them are certainly computed."""
        self._owner, self._ids, self._computed = owner, ids, computed

    def usable(self, owner: str, ids: Sequence[int]) -> int:
        """The number of tokens of the prompt `ids` that can stay in the cache, 0 if it must be emptied.

        The library cannot compute a query of no token or of one token.
        """
        if owner != self._owner:
            return 0
        length = min(common_prefix(self._ids, ids) - 1, self._computed, len(ids) - 2)
        left = [context for context in self._contexts[:-1] if len(self._ids) + self._width > context]
        return length if length > max(left, default=0) else 0
