"""Constrained decoding with llguidance: the mask of possible tokens, computed while the device computes logits.

A grammar is compiled once, which can take seconds (see compile_queue.py). Each choice then follows its own copy. Where
only one token is possible, the forced tokens are known before the device call: they are the next draft.

This module converts the errors of llguidance to GatewayErrors.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gateway.errors import InvalidRequest
from gateway.worker.decoders.base import Logits
from gateway.worker.grammar.forced import ForcedText
from gateway.worker.grammar.library import error_of


class GrammarConstraint:
    """The position of one choice in a grammar. Implements Constraint.

    Its methods raise InvalidRequest if the grammar exceeds a limit (see `library.parser_limits`) or if no token can
    follow.

    Args:
        matcher: at the start of the answer.
        forced: follows the same answer.
        mask_thread: computes the masks.
        param: the field of the request with the grammar, for error messages.
    """

    def __init__(
        self, matcher: Any, forced: ForcedText, tokenizer: Any, mask_thread: ThreadPoolExecutor, param: str
    ) -> None:
        self._matcher, self._forced_text, self._mask_thread, self._param = matcher, forced, mask_thread, param
        self._mask = np.zeros((tokenizer.vocab_size + 31) // 32, np.uint32)  # one bit for each token
        self._forced: Sequence[int] = ()
        self._masking: Future[None] | None = None  # until it is done, only its thread uses the matcher
        self._end_ids = frozenset(tokenizer.eos_tokens)
        self._look_ahead()

    @property
    def end_ids(self) -> frozenset[int]:
        return self._end_ids

    @property
    def is_stopped(self) -> bool:
        return not self._forced and self._masking is None

    def restrict(self, logits: Logits) -> None:
        if self._masking is not None:
            self._masking.result()
            self._check()
            excluded = np.unpackbits(np.invert(self._mask).view(np.uint8), count=len(logits), bitorder="little")
            limits = (1 - 2 * excluded.view(np.int8)) * np.float32(np.inf)  # without branches, unlike a mask
            np.minimum(logits, limits, out=logits)
        else:
            only = list(self._forced[:1] or self._end_ids)
            kept = logits[only]
            logits.fill(-np.inf)
            logits[only] = kept

    def accept(self, token: int) -> None:
        if self._masking is not None:
            self._masking.result()
        self._matcher.consume_token(token)
        self._check()
        self._forced_text.accept(token)
        self._forced = self._forced[1:]
        if not self._forced:
            self._look_ahead()

    def forced(self) -> Sequence[int]:
        return self._forced

    def _look_ahead(self) -> None:
        """Find the forced tokens. If there are none, start to compute the mask."""
        self._masking = None
        if self._matcher.is_stopped():
            return
        self._forced = self._forced_text.tokens(self._matcher)
        if not self._forced:
            self._masking = self._mask_thread.submit(_fill, self._mask, self._matcher)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise InvalidRequest(f"The answer cannot continue: {error_of(self._matcher)}.", param=self._param)


def _fill(mask: NDArray[np.uint32], matcher: Any) -> None:
    """Compute the mask. The arguments keep both objects alive if the choice is cancelled meanwhile."""
    matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)


class CompiledGrammar:
    """A compiled grammar, for any number of choices.

    Args:
        cpu_s: what reading and compiling it took. Its memory grows with it: about 100 MB for a second.
    """

    def __init__(
        self, matcher: Any, forced: ForcedText, tokenizer: Any, mask_thread: ThreadPoolExecutor, cpu_s: float
    ) -> None:
        self._matcher, self._forced, self._tokenizer, self._mask_thread = matcher, forced, tokenizer, mask_thread
        self.cpu_s = cpu_s

    def constraint(self, param: str) -> GrammarConstraint:
        """A constraint at the start of the grammar. `param`: the field of the request with the grammar."""
        return GrammarConstraint(
            self._matcher.deep_copy(), self._forced.copy(), self._tokenizer, self._mask_thread, param
        )
