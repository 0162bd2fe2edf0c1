"""One choice of a request: its tokens so far, and how the next ones are chosen from logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gateway.common_prefix import common_prefix
from gateway.generation import FinishReason, Grammar
from gateway.worker.decoders.base import KVCache, Logits
from gateway.worker.drafting import CallCosts, PredictionDrafter, PromptLookupDrafter
from gateway.worker.frames import Scored, Submit
from gateway.worker.sampling import Sampler, exclude, score
from gateway.worker.slots import Slot


class Constraint(Protocol):
    """What one answer must match, token by token. Stop tokens are never given to `accept`."""

    def restrict(self, logits: Logits) -> None:
        """Make every token that may not come next impossible (-inf), in place; at least one stays possible."""

    def accept(self, token: int) -> None:
        """The answer goes on with this token. Work for the next `restrict` may begin here, beside the device."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, as far as that is known; empty when there is a choice."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end the answer where the grammar allows it, whatever else the request says of them."""

    @property
    def is_stopped(self) -> bool:
        """The answer is complete and nothing may follow."""


#: Raises InvalidRequest when the grammar cannot be compiled.
MakeConstraint = Callable[[Grammar], Constraint]


@dataclass
class Progress:
    """What one device call brought a choice."""

    tokens: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    accepted: int = 0  # tokens of the prediction that were right
    rejected: int = 0
    reason: FinishReason | None = None  # set when the choice is over
    counted_stop: int = 0


class GeneratingSequence:
    """The state of one choice. All of `ids` but the last are in the slot's cache once the prompt is computed.

    Args:
        lookup: whether it may draft what prompt and answer have said before.
        is_batch_invariant: `DecoderSpec.is_batch_invariant`. If False, a seeded request steps alone and drafts
            nothing that depends on timing, so that the same seed gives the same answer.
    """

    def __init__(
        self,
        request: Submit,
        choice: int,
        make_constraint: MakeConstraint,
        *,
        lookup: bool = True,
        is_batch_invariant: bool = True,
    ) -> None:
        self.request = request
        self.choice = choice
        self.ids = list(request.ids)
        self.slot: Slot | None = None
        self.served_s = 0.0  # device time it has had, for fairness; starts level with the others
        self.prompt_scored = 1  # prompt tokens whose log-probability is reported; the first one has none
        self._sampler = Sampler(request.sampling, request.ids, choice)
        self._constraint = make_constraint(request.grammar) if request.grammar else None
        self._drafter = PredictionDrafter(request.prediction) if request.prediction else None
        self.steps_alone = not is_batch_invariant and request.sampling.seed is not None and not self._sampler.is_greedy
        self._lookup = PromptLookupDrafter(self.ids) if lookup and not self.steps_alone else None
        self._stop_ids = frozenset(request.stop_ids)
        self._least = request.min_tokens
        if self._constraint:
            self._least = self._least if request.stop_ids else request.max_tokens  # `ignore_eos`
            self._stop_ids |= self._constraint.end_ids
        self._is_predicted = False  # whether the draft under way comes from the prediction

    @property
    def generated(self) -> int:
        return len(self.ids) - len(self.request.ids)

    @property
    def held_slot(self) -> Slot:
        """Its slot, which it has while it runs."""
        assert self.slot is not None
        return self.slot

    @property
    def cache(self) -> KVCache:
        return self.held_slot.cache

    @property
    def missing(self) -> int:
        """Tokens that the cache does not hold yet."""
        return len(self.ids) - self.cache.length

    def draft(self, most: int, costs: CallCosts, sequences: int) -> Sequence[int]:
        """At most `most` tokens that are likely to come next, and no more than the request still may have.

        What the grammar forces goes first, then what the client predicted; what has been said before comes last, and
        only when by `costs` it is worth more than a step that `sequences` sequences share.
        """
        most = min(most, self.request.max_tokens - self.generated - 1)
        self._is_predicted = False
        if most <= 0:
            return ()
        if self._constraint and (forced := self._constraint.forced()):
            return forced[:most]
        if self._drafter and (predicted := self._drafter.draft(most)):
            self._is_predicted = True
            return predicted
        return self._lookup.draft(most, costs, sequences) if self._lookup else ()

    def advance(self, rows: Logits, draft: Sequence[int] = ()) -> Progress:
        """Choose a token from each row for as long as the draft foretold it.

        rows: (1 + len(draft), vocab); row i follows the draft's first i tokens. Each token is chosen as if it were the
        only one, with its own random number, so the draft changes no answer and no distribution.
        Raises FloatingPointError when no token is possible.
        """
        progress = Progress()
        if self.generated >= self.request.max_tokens:
            progress.reason = "length"
            return progress
        for row, expected in zip(rows, (*draft, None), strict=True):
            token, scored = self._choose(row)
            if token in self._stop_ids:
                progress.reason, progress.counted_stop = "stop", 1
                break
            self._append(token, progress, scored)
            if progress.reason or token != expected:
                break
        self._settle(progress, draft)
        return progress

    def _choose(self, row: Logits) -> tuple[int, Scored | None]:
        top = self.request.logprobs
        raw = row.copy() if top is not None else row
        self._sampler.adjust(row)
        if self._constraint:
            self._constraint.restrict(row)
        if self.generated < self._least:
            exclude(row, list(self._stop_ids))
        token = self._sampler.choose(row)
        return token, score(raw, token, top) if top is not None else None

    def _append(self, token: int, progress: Progress, scored: Scored | None) -> None:
        self.ids.append(token)
        progress.tokens.append(token)
        if scored:
            progress.scored.append(scored)
        if self._drafter:
            self._drafter.follow(token)
        if self._lookup:
            self._lookup.follow(token)
        if self._constraint:
            self._constraint.accept(token)
        if self._constraint and self._constraint.is_stopped:
            progress.reason = "stop"
        elif self.generated >= self.request.max_tokens:
            progress.reason = "length"

    def _settle(self, progress: Progress, draft: Sequence[int]) -> None:
        """Count what the draft was worth, and drop the rows of its wrong tokens from the cache."""
        if draft and self._drafter and self._is_predicted:
            progress.accepted = common_prefix(progress.tokens, draft)
            progress.rejected = len(draft) - progress.accepted
            self._drafter.learn(len(draft), progress.accepted)
        self.cache.truncate(min(self.cache.length, len(self.ids) - 1))
