"""The local engine: text in the gateway process, tokens in a worker process.

`prepare` renders and encodes the prompt in the prompt process. `run` submits it and answers from the worker's frames. A
frame becomes events when it arrives, not when the client reads. So a stop string ends the work of the device at once,
and the meter is correct, also for a slow client. The number of events is limited by the context length.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from gateway.bundles.genie.bundle import GenieBundle, load_genie_bundle
from gateway.bundles.genie.config import bundle_folder
from gateway.bundles.kv_cache.common_prefix import common_prefix
from gateway.bundles.open import open_bundle
from gateway.bundles.origin import Origin, read_origin
from gateway.config.tables import GenieModel, LocalModel
from gateway.engines.base import Emit, EngineStatus, Plan, Prepared
from gateway.engines.context import max_answer_tokens
from gateway.engines.head_start import take_prompts
from gateway.engines.local.events import FrameTranslator
from gateway.engines.local.greedy_only import CAPABILITIES, GREEDY, check_greedy_only
from gateway.engines.local.process import Entry
from gateway.engines.local.prompts import Prompts
from gateway.engines.local.sick_start import SickStart
from gateway.engines.local.speed import chip_title, published_speed
from gateway.engines.process_engine import ProcessEngine
from gateway.errors import BundleError
from gateway.generation import Generation, Meter, Usage
from gateway.prompts.messages import Encoded
from gateway.worker.entry import local_worker
from gateway.worker.frames import DraftLost, FreeCache, FromWorker, Message, Ready, Submit

_log = logging.getLogger(__name__)


class LocalPrepared(Prepared, frozen=True, kw_only=True):
    plan: Plan
    prompt: Encoded


class LocalEngine(ProcessEngine[FrameTranslator]):
    """A bundle on this machine, run by a worker process. Implements Engine.

    Args:
        name: of the model, for messages and the names of processes and threads.
        model: its table in the configuration.
        models_dir: the folder that `model.path` is relative to.
        entry: the function that runs in the worker process.
        clock: seconds, monotonic.
    """

    takes_turns = True

    def __init__(
        self,
        name: str,
        model: LocalModel | GenieModel,
        models_dir: Path,
        *,
        entry: Entry = local_worker,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        path = models_dir / model.path
        self._folder = bundle_folder(path) if isinstance(model, GenieModel) else path
        self._sick_start = SickStart(self._folder, models_dir, clock)
        super().__init__(name, model, path, self._folder, entry=entry, clock=clock, sick_start=self._sick_start)
        self._genie: GenieBundle | None = None  # the bundle, if it is in Genie's layout
        self._sampling: dict[str, float] = {}  # recommended by the bundle
        self._draft_loss = ""  # why the draft model drafts no longer
        self._origin: Origin | None = None  # of a bundle that was pulled
        #: (owner, token ids) of recent requests: the worker probably has their prefixes in its cache.
        self._recent: deque[tuple[str, list[int]]] = deque(maxlen=4 * model.max_sequences)

    async def start(self) -> None:
        """Read the bundle, start the worker, wait until it is warm. Raises BundleError, EngineFailed."""
        if not self._model.path:
            raise BundleError(f"The model '{self._name}' needs the key `path`: the folder of its bundle.")
        self._draft_loss = ""
        await super().start()

    def breaker_opened(self) -> None:
        if sign := self._sick_start.became_sick():
            self._supervisor.discard(f"the NPU became sick: {sign}")

    def free_cache(self) -> None:
        self._recent.clear()
        self._supervisor.send(FreeCache())

    async def prepare(self, generation: Generation) -> LocalPrepared:
        prompts, ready = self._ready_prompts(), self._supervisor.ready
        if self._genie and self._genie.max_tokens is not None:
            generation = replace(generation, max_tokens=min(generation.max_tokens, self._genie.max_tokens))
        prompt = await prompts.encode(generation)
        self._check_supported(generation, prompt)
        plan = Plan(
            prompt_tokens=len(prompt.ids),
            cached_tokens=self._likely_cached(generation, prompt.ids),
            chunk_width=ready.prompt_width if ready else math.inf,
            max_tokens=max_answer_tokens(generation, len(prompt.ids), self.status.context_length, prompt.dropped),
            dropped_messages=prompt.dropped,
        )
        return LocalPrepared(generation=generation, plan=plan, prompt=prompt)

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        assert isinstance(prepared, LocalPrepared)
        prompts = self._ready_prompts()  # the worker may have died since `prepare`
        submit = self._submit(prepared, prompts)
        translator = FrameTranslator(
            submit,
            prepared.generation.stop,
            meter,
            emit,
            ends=() if prepared.generation.ignore_eos else prompts.end_strings,
            tokens=prompts.tokens,
            parsers=prompts.parsers(prepared.generation, prepared.prompt),
            send=self._supervisor.send,
            call_s=self._supervisor.call_s,
        )
        self._supervisor.send(submit)
        self._recent.append((submit.owner, translator.ids))
        return await self._finish(translator, meter)

    def _loaded_status(self, ready: Ready) -> EngineStatus:
        status = replace(
            super()._loaded_status(ready),
            mode_refusal=ready.mode_refusal,
            chip=chip_title(ready),
            published_tokens_per_s=published_speed(self._origin, ready),
            sampling=self._sampling,
            draft=self._draft_loss or ready.draft,
        )
        return replace(status, capabilities=CAPABILITIES, sampling=GREEDY) if ready.greedy_only else status

    def _open_prompts(self) -> Prompts:
        model, self._origin = self._model, read_origin(self._folder)
        bundle = (
            open_bundle(self._path, model.dialect, model.tokenizer)
            if isinstance(model, LocalModel)
            else load_genie_bundle(self._path, model.dialect)
        )
        self._sampling = bundle.sampling
        self._genie = bundle if isinstance(bundle, GenieBundle) else None  # another try can find another bundle
        if isinstance(model, LocalModel) and not isinstance(bundle, GenieBundle):
            begun = take_prompts(self._name, self._path, model.dialect, model.tokenizer)
            return begun or Prompts(bundle, model.dialect)
        if not isinstance(bundle, GenieBundle):
            return Prompts(bundle, model.dialect)
        return Prompts(bundle, model.dialect, end_strings=bundle.end_strings)

    def _check_supported(self, generation: Generation, prompt: Encoded) -> None:
        """Raise UnsupportedParameter if the engine or the model cannot do what the request needs."""
        if (ready := self._supervisor.ready) and ready.greedy_only:
            check_greedy_only(self._name, generation)

    def _likely_cached(self, generation: Generation, ids: Sequence[int]) -> int:
        """The longest prefix shared with a recent request. The worker always computes the last two tokens."""
        if not self._model.prefix_cache or generation.prompt_logprobs:
            return 0
        shared = (common_prefix(ids, recent) for owner, recent in self._recent if owner == generation.owner)
        return max(0, min(max(shared, default=0), len(ids) - 2))

    def _submit(self, prepared: LocalPrepared, prompts: Prompts) -> Submit:
        generation, prompt = prepared.generation, prepared.prompt
        return Submit(
            id=next(self._ids),
            ids=prompt.ids,
            sampling=generation.sampling,
            max_tokens=prepared.plan.max_tokens,
            min_tokens=generation.min_tokens,
            stop_ids=[] if generation.ignore_eos else prompts.end_ids,
            n=generation.n,
            logprobs=generation.logprobs,
            prompt_logprobs=generation.prompt_logprobs,
            grammar=prompt.grammar,
            prediction=prompt.prediction,
            background=generation.background,
            owner=generation.owner,
            client=generation.client,
        )

    def _receive(self, frame: Message) -> None:
        if isinstance(frame, DraftLost):
            self._draft_loss = f"failed: {frame.reason}"
            _log.warning("%s: its draft model has failed, so it answers without it: %s", self._name, frame.reason)
        super()._receive(frame)

    def _take(self, run: FrameTranslator, frame: FromWorker) -> None:
        if len(self._running) == 1 and run.is_single:
            self._sick_start.note(frame)
        run.take(frame)
