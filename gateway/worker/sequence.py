"""One choice of a request: its tokens so far, and how the next tokens are chosen from logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from gateway.bundles.kv_cache.common_prefix import common_prefix
from gateway.generation import FinishReason, Grammar
from gateway.worker.decoders.base import KVCache, Logits
from gateway.worker.drafting.costs import CallCosts
from gateway.worker.drafting.lookup import PromptLookupDrafter
from gateway.worker.drafting.prediction import PredictionDrafter, PredictionIndex
from gateway.worker.frames import DraftSource, Scored, Submit
from gateway.worker.sampling import Sampler, exclude, is_greedy, score
from gateway.worker.slots import Slot


class Constraint(Protocol):
    """Constrained decoding of one answer: which tokens can come next. `accept` never gets a stop token."""

    def restrict(self, logits: Logits) -> None:
        """Set each token that cannot come next to -inf, in place. At least one token stays possible.

        Args:
            logits: float32 (vocab,).
        """

    def accept(self, token: int) -> None:
        """Append a token to the answer. Work for the next `restrict` can start here, in parallel with the device."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, as far as they are known. Empty if more than one token is possible."""

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end the answer where the grammar permits it, also with `ignore_eos`."""

    @property
    def is_stopped(self) -> bool:
        """True if the answer is complete and no token can follow."""


#: Finds the compiled grammar of a request. The result makes a constraint for each choice, at the grammar's start.
#: Raises InvalidRequest if the grammar does not compile.
MakeConstraint = Callable[[Grammar], Callable[[], Constraint]]


@dataclass
class SlotUse:
    """A sequence's use of the slot that it has now, in seconds of device time."""

    held_s: float = 0.0
    prefill_s: float = 0.0
    #: True if rows were lost while the sequence was suspended, so that they must be computed again.
    is_costly: bool = False


@dataclass
class Progress:
    """The tokens of one choice from one device call."""

    tokens: list[int] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    source: DraftSource = ""  # of the draft
    drafted: int = 0  # tokens of the draft
    matched: int = 0  # of those, the right ones
    reason: FinishReason | None = None  # set when the choice has ended
    counted_stop: int = 0


class SharedParts:
    """What all choices of a request share.

    Args:
        token_bytes: the text of a token.
        lookup: True to draft with prompt-lookup decoding.
        is_batch_invariant: `DecoderSpec.is_batch_invariant`. If False, a seeded request steps alone and drafts
            nothing that depends on timing, so that the same seed gives the same answer.

    Raises InvalidRequest for a grammar that does not compile.
    """

    def __init__(
        self,
        request: Submit,
        make_constraint: MakeConstraint,
        *,
        token_bytes: Callable[[int], bytes] = lambda token: b"",
        lookup: bool = True,
        is_batch_invariant: bool = True,
    ) -> None:
        self.request = request
        self.token_bytes = token_bytes
        self.make_constraint = make_constraint(request.grammar) if request.grammar else None
        self.steps_alone = (
            not is_batch_invariant and request.sampling.seed is not None and not is_greedy(request.sampling)
        )
        self.lookup = lookup and not self.steps_alone

    @cached_property
    def prediction(self) -> PredictionIndex:
        """Of the part that an answer can use. It may leave out as many tokens of the text as it has."""
        return PredictionIndex(self.request.prediction[: 2 * self.request.max_tokens])


class GeneratingSequence:
    """The state of one choice. After the prefill, the slot's cache holds all of `ids` except the last one.

    It is small until `begin`: a request can have 128 choices, and only those with a slot need memory.

    Args:
        choice: index of the choice, 0..n-1.
    """

    _sampler: Sampler
    _constraint: Constraint | None
    _drafter: PredictionDrafter | None
    _lookup: PromptLookupDrafter | None

    def __init__(self, shared: SharedParts, choice: int) -> None:
        self.request = shared.request
        self.choice = choice
        self.slot: Slot | None = None
        self.served_s = 0.0  # device time so far, for fair scheduling; it starts at the minimum of its siblings
        self.slot_use = SlotUse()
        self.computed = 0  # rows of the cache when the sequence was suspended
        self.has_begun = False
        self._shared = shared
        self._scored_prompt = 1  # prompt tokens whose log-probability is reported; the first token has none
        self.draft_source: DraftSource = ""  # of the current draft
        self.drafting_s = 0.0  # device time of the draft model that no frame has reported yet

    def begin(self) -> None:
        """Make what the choice needs to generate. Raises InvalidRequest for a grammar that exceeds a limit."""
        request, shared = self.request, self._shared
        self.has_begun = True
        self._sampler = Sampler(request.sampling, request.ids, self.choice, shared.token_bytes)
        self._constraint = shared.make_constraint() if shared.make_constraint else None
        self._drafter = PredictionDrafter(shared.prediction) if request.prediction else None
        self._lookup = PromptLookupDrafter(self.ids) if shared.lookup else None
        self._stop_ids = frozenset(request.stop_ids)
        self._min_tokens = request.min_tokens
        if self._constraint:
            self._min_tokens = self._min_tokens if request.stop_ids else request.max_tokens  # `ignore_eos`
            self._stop_ids |= self._constraint.end_ids

    @cached_property
    def ids(self) -> list[int]:
        """The prompt and the answer so far."""
        return list(self.request.ids)

    @property
    def steps_alone(self) -> bool:
        return self._shared.steps_alone

    @property
    def generated(self) -> int:
        return len(self.ids) - len(self.request.ids)

    @property
    def held_slot(self) -> Slot:
        """The slot of a running sequence."""
        assert self.slot is not None
        return self.slot

    @property
    def cache(self) -> KVCache:
        return self.held_slot.cache

    @property
    def missing(self) -> int:
        """The number of tokens that the cache does not hold yet."""
        return len(self.ids) - self.cache.length

    @property
    def left(self) -> int:
        """The most tokens that a draft can have, within the request's `max_tokens`."""
        return self.request.max_tokens - self.generated - 1

    @property
    def may_draft(self) -> bool:
        """True if drafts that depend on timing are allowed."""
        return not self._shared.steps_alone

    def draft(self, limit: int, costs: CallCosts, rate: float) -> Sequence[int]:
        """Up to `limit` tokens that are likely to come next, within the request's `max_tokens`.

        The sources, in this order: tokens that the grammar forces, the client's prediction, prompt lookup. Prompt
        lookup drafts only if `costs` predict more than `rate` tokens per second.
        """
        limit = min(limit, self.left)
        self.draft_source = ""
        if limit <= 0:
            return ()
        if self._constraint and (forced := self._constraint.forced()):
            self.draft_source = "grammar"
            return forced[: costs.cut(min(len(forced), limit))]
        if self._drafter and (predicted := self._drafter.draft(limit)):
            self.draft_source = "prediction"
            return predicted[: costs.cut(len(predicted))]
        found = self._lookup.draft(limit, costs, rate) if self._lookup and rate else ()
        self.draft_source = "lookup" if found else ""
        return found

    def advance(self, rows: Logits, draft: Sequence[int] = (), cost: float = 0.0) -> Progress:
        """Choose a token from each row, as long as the chosen tokens agree with the draft.

        Each token is chosen from its own logits with its own random number, as without a draft. So a draft does not
        change the distribution of the answer, and it changes no answer if the decoder is batch-invariant.

        Args:
            rows: float32 (1 + len(draft), vocab); row i follows the first i tokens of the draft.
            cost: of the call, in steps without a draft; 0 without a draft.

        Raises InvalidRequest if no token is possible.
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
        self._settle(progress, draft, cost)
        return progress

    def score_prompt(self, rows: Logits) -> list[Scored]:
        """The log-probabilities of the prompt tokens that follow the rows. Each token is reported once.

        Args:
            rows: float32 (rows, vocab), the logits after the last tokens of the cache.
        """
        prompt, top, start = self.request.ids, self.request.logprobs or 0, self.cache.length - len(rows)
        first = max(self._scored_prompt, start + 1)
        last = min(len(prompt), start + 1 + len(rows))
        self._scored_prompt = max(first, last)
        return [score(rows[position - start - 1], prompt[position], top) for position in range(first, last)]

    def _choose(self, row: Logits) -> tuple[int, Scored | None]:
        top = self.request.logprobs
        raw = row.copy() if top is not None else row
        self._sampler.adjust(row)
        if self._constraint:
            self._constraint.restrict(row)
        if self.generated < self._min_tokens:
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

    def _settle(self, progress: Progress, draft: Sequence[int], cost: float) -> None:
        """Count the accepted tokens of a draft, and remove the rows of rejected tokens from the cache."""
        if draft:
            progress.source, progress.drafted = self.draft_source, len(draft)
            progress.matched = common_prefix(progress.tokens, draft)
        if self._drafter and progress.source == "prediction":
            self._drafter.record(progress.drafted, progress.matched)
        if self._lookup and progress.source == "lookup":
            self._lookup.credit.settle(progress.matched + 1, cost)
        elif self._lookup and not draft:
            self._lookup.credit.stepped()
        self.cache.truncate(min(self.cache.length, len(self.ids) - 1))
