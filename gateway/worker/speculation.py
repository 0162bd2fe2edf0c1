"""The draft for the next call of a sequence, from all sources, and what is learned from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from gateway.activity import Activity
from gateway.worker.decoders.base import DecoderSpec
from gateway.worker.drafting.costs import CallCosts
from gateway.worker.drafting.model import DraftModel
from gateway.worker.failures import as_gateway_error
from gateway.worker.frames import DraftLost, FromWorker, PassTimes
from gateway.worker.schedule import Schedule
from gateway.worker.sequence import GeneratingSequence, Progress


class Speculation:
    """Args:
    spec: of the main model's decoder.
    schedule: of the sequences.
    activity: times all calls.
    emit: sends a frame to the gateway.
    model: drafts where no other source does; None: there is none.
    passes: times of the warm main model; None: not measured.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        schedule: Schedule,
        activity: Activity,
        emit: Callable[[FromWorker], None],
        model: DraftModel | None = None,
        passes: PassTimes | None = None,
    ) -> None:
        self._spec, self._schedule, self._activity, self._emit = spec, schedule, activity, emit
        self._model = model
        self._widest = max(spec.pass_costs, default=spec.prompt_width)
        self.costs = CallCosts(spec.pass_costs, passes.id_cost if passes else 0.0)

    def draft(self, sequence: GeneratingSequence, sequences: int, *, may_call: bool) -> Sequence[int]:
        """The tokens to verify in the next call; empty: a step is better.

        The sources, in this order: what the grammar forces, the client's prediction, prompt lookup, the draft model.

        Args:
            sequences: how many share a step.
            may_call: True if the draft model can make calls for it.
        Raises InvalidRequest if the grammar fails.
        """
        rate = self.costs.step_rate(sequences)
        limit = min(self._widest - 1, self._spec.context_length - len(sequence.ids))
        found = sequence.draft(limit, self.costs, rate)
        if found or not may_call or self._model is None or not sequence.may_draft:
            return found
        return self._from_model(self._model, sequence, min(limit, sequence.left), rate)

    def settle(self, sequence: GeneratingSequence, progress: Progress, sequences: int) -> None:
        """The tokens of the call are chosen."""
        if progress.drafted and self._model and progress.source == "model":
            seconds, rate = self.costs.verify_cost(progress.drafted + 1), self.costs.step_rate(sequences)
            self._model.settle(sequence, sequence.ids, progress.matched, seconds, rate)

    def cost(self, draft: Sequence[int], sequences: int) -> float:
        """Of a call that verifies the draft, in steps that `sequences` sequences share; 0 without a draft."""
        rate = self.costs.step_rate(sequences)
        return self.costs.verify_cost(len(draft) + 1) * rate if draft and rate else 0.0

    def free_cache(self) -> None:
        if self._model:
            self._model.free_cache()

    def _from_model(self, model: DraftModel, sequence: GeneratingSequence, limit: int, rate: float) -> Sequence[int]:
        model.keep(self._schedule.is_running)
        before = self._activity.device_s
        try:
            draft = model.draft(sequence, sequence.ids, sequence.held_slot.owner, limit, self.costs, rate)
        except Exception as error:  # the answers do not need it
            self._lose(model, as_gateway_error(error, "The draft model").message)
            return ()
        if spent := self._activity.device_s - before:
            self._schedule.charge([sequence], spent)
            sequence.drafting_s += spent
        if draft:
            sequence.draft_source = "model"
        return draft

    def _lose(self, model: DraftModel, reason: str) -> None:
        self._model = None
        self._emit(DraftLost(reason))
        with suppress(Exception):  # its device can be lost
            model.close()
