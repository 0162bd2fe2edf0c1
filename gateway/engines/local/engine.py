"""The local engine: text in the gateway process, tokens in a worker process.

`prepare` renders and encodes the prompt in the prompt process. `run` submits it and answers from the worker's frames. A
frame becomes events when it arrives, not when the client reads. So a stop string ends the work of the device at once,
and the meter is correct, also for a slow client. The number of events is limited by the context length.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec.structs import replace

from gateway.bundles.genie.bundle import GenieBundle, load_genie_bundle
from gateway.bundles.genie.config import bundle_folder
from gateway.bundles.open import open_bundle
from gateway.bundles.origin import Origin, read_origin
from gateway.common_prefix import common_prefix
from gateway.config.tables import GenieModel, LocalModel
from gateway.engines.base import Emit, EngineStatus, Plan, Prepared
from gateway.engines.context import max_answer_tokens
from gateway.engines.local.events import FrameTranslator
from gateway.engines.local.greedy_only import CAPABILITIES, GREEDY, check_greedy_only
from gateway.engines.local.integrity import IntegrityCheck
from gateway.engines.local.process import Entry, WorkerProcess, spec_of
from gateway.engines.local.prompts import Prompts
from gateway.engines.local.sick_start import SickStart
from gateway.engines.local.speed import chip_title, published_speed
from gateway.engines.local.supervisor import Supervisor
from gateway.engines.local.text_tools import LocalTextTools
from gateway.errors import BundleError, EngineFailed, GatewayError, ModelNotReady
from gateway.generation import Generation, Meter, Usage
from gateway.prompts.messages import Encoded
from gateway.worker.entry import local_worker
from gateway.worker.frames import Cancel, FreeCache, FromWorker, Submit

_log = logging.getLogger(__name__)


class LocalPrepared(Prepared, frozen=True, kw_only=True):
    plan: Plan
    prompt: Encoded


class LocalEngine:
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
        self._name, self._model = name, model
        self._path = models_dir / model.path
        self._folder = folder = bundle_folder(self._path) if isinstance(model, GenieModel) else self._path
        self._sick_start = SickStart(folder, models_dir, clock)
        self._entry = entry
        self._prompts: Prompts | None = None  # None before the first load
        self._genie: GenieBundle | None = None  # the bundle, if it is in Genie's layout
        self._sampling: dict[str, float] = {}  # recommended by the bundle
        self._origin: Origin | None = None  # of a bundle that was pulled
        self._running: dict[int, FrameTranslator] = {}  # by the id of the request at the worker
        self._ids = itertools.count(1)
        #: (owner, token ids) of recent requests: the worker probably has their prefixes in its cache.
        self._recent: deque[tuple[str, list[int]]] = deque(maxlen=4 * model.max_sequences)
        self._supervisor = Supervisor(
            name,
            self._worker,
            load_timeout_s=model.load_timeout_s,
            watchdog_s=model.watchdog_s,
            on_frame=self._receive,
            on_lost=self._fail_all,
            sick_start=self._sick_start,
            clock=clock,
        )
        has_source = isinstance(model, LocalModel) and bool(model.source)
        self._integrity = IntegrityCheck(name, folder, has_source, self._supervisor.discard)
        self.text_tools = LocalTextTools(self._ready_prompts)

    @property
    def status(self) -> EngineStatus:
        supervisor, ready = self._supervisor, self._supervisor.ready
        if self._integrity.damage:
            return EngineStatus(state="failed", detail=self._integrity.damage)
        if ready is None:
            return EngineStatus(state=supervisor.state, detail=supervisor.detail)
        if self._prompts is None or not self._prompts.is_started:
            return EngineStatus(state="loading", detail="reading its tokenizer")
        status = EngineStatus(
            state=supervisor.state,
            detail=supervisor.detail,
            device=ready.device,
            soc=ready.soc,
            mode_refusal=ready.mode_refusal,
            context_length=ready.context_length,
            restarts=supervisor.restarts,
            placement=ready.placement,
            passes=ready.passes,
            pid=supervisor.pid,
            chip=chip_title(ready),
            published_tokens_per_s=published_speed(self._origin, ready),
            load_s=ready.load_s + ready.warm_up_s,
            peak_bytes=ready.peak_bytes,
            sampling=self._sampling,
        )
        return replace(status, capabilities=CAPABILITIES, sampling=GREEDY) if ready.greedy_only else status

    async def start(self) -> None:
        """Read the bundle, start the worker, wait until it is warm. Raises BundleError, EngineFailed."""
        if not self._model.path:
            raise BundleError(f"The model '{self._name}' needs the key `path`: the folder of its bundle.")
        await self._integrity.require_intact()
        try:
            await self._start_processes()
        finally:
            await self._integrity.start()  # also after a failure: a damaged file can be its reason

    async def lost(self) -> str:
        return await self._supervisor.lost()

    def breaker_opened(self) -> None:
        if sign := self._sick_start.became_sick():
            self._supervisor.discard(f"the NPU became sick: {sign}")

    def free_cache(self) -> None:
        self._recent.clear()
        self._supervisor.send(FreeCache())

    async def aclose(self) -> None:
        self._fail_all(EngineFailed(f"The model '{self._name}' was closed."))
        await self._integrity.aclose()
        await self._supervisor.aclose()
        await self._close_prompts()

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
        self._running[submit.id] = translator
        self._recent.append((submit.owner, translator.ids))
        try:
            return await translator.finished()
        except asyncio.CancelledError:
            meter.call_cut()
            raise
        finally:
            meter.call_ended()
            if self._running.pop(submit.id, None) is not None:
                self._supervisor.send(Cancel(submit.id))

    async def _start_processes(self) -> None:
        if self._supervisor.ready is not None and self._prompts is not None and self._prompts.is_started:
            return await self._supervisor.start()
        await self._close_prompts()
        self._prompts = await asyncio.to_thread(self._open_prompts)
        worker = asyncio.ensure_future(self._supervisor.start())  # at the same time as the prompt process
        try:
            await self._prompts.start()
        except BaseException as error:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
            await self._supervisor.unload(getattr(error, "message", ""))  # it can have loaded before
            raise
        await worker

    async def _close_prompts(self) -> None:
        if self._prompts is not None:
            await self._prompts.aclose()

    def _open_prompts(self) -> Prompts:
        model, self._origin = self._model, read_origin(self._folder)
        bundle = (
            open_bundle(self._path, model.dialect, model.tokenizer)
            if isinstance(model, LocalModel)
            else load_genie_bundle(self._path, model.dialect)
        )
        self._sampling = bundle.sampling
        self._genie = bundle if isinstance(bundle, GenieBundle) else None  # another try can find another bundle
        if not isinstance(bundle, GenieBundle):
            return Prompts(bundle, model.dialect)
        return Prompts(bundle, model.dialect, end_strings=bundle.end_strings)

    def _check_supported(self, generation: Generation, prompt: Encoded) -> None:
        """Raise UnsupportedParameter if the engine or the model cannot do what the request needs."""
        if (ready := self._supervisor.ready) and ready.greedy_only:
            check_greedy_only(self._name, generation)

    def _worker(self, on_frame: Callable[[FromWorker], None]) -> WorkerProcess:
        return WorkerProcess(self._name, spec_of(self._model, self._path), on_frame, self._entry)

    def _ready_prompts(self) -> Prompts:
        """Raises ModelNotReady unless the worker can take a request."""
        status = self.status
        if self._prompts is None or status.state != "ready":
            reason = f"{status.state}: {status.detail}" if status.detail else status.state
            raise ModelNotReady(f"The model '{self._name}' is not ready ({reason}).", retry_after_s=1)
        self._prompts.context_length = status.context_length
        return self._prompts

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

    def _receive(self, frame: FromWorker) -> None:
        """Handle a frame from the worker. It also means that a device call has returned and the next one runs."""
        for running in self._running.values():
            running.device_reported()
        translator = self._running.get(getattr(frame, "id", None) or 0)
        if translator is None:
            return  # the request was cancelled before
        if len(self._running) == 1 and translator.is_single:
            self._sick_start.note(frame)
        try:
            translator.take(frame)
        except Exception as error:  # a bug in a parser of the answer's text
            _log.error("%s: the answer could not be read", self._name, exc_info=error)
            unread = f"{self._name} gave an answer that could not be read; the log has the reason."
            translator.fail(GatewayError(unread))
            self._supervisor.send(Cancel(translator.id))
        if translator.is_over:
            del self._running[translator.id]

    def _fail_all(self, error: GatewayError) -> int:
        """End every running request with `error`. Returns how many there were."""
        failed = list(self._running.values())
        self._running.clear()
        for translator in failed:
            translator.fail(error)
        return len(failed)
