"""The engine of an encoder: texts become token ids in the prompt process, and vectors or scores in a worker process."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path

from gateway.bundles.encoder.bundle import EncoderInfo, load_encoder_bundle
from gateway.config.tables import LocalModel
from gateway.embedding import Inputs
from gateway.engines.base import Capability, Emit, EngineStatus, Plan, Prepared
from gateway.engines.encoder.inputs import check_known, encode
from gateway.engines.encoder.request import EmbeddingRun
from gateway.engines.local.integrity import IntegrityCheck
from gateway.engines.local.process import Entry, WorkerProcess, spec_of
from gateway.engines.local.prompts import Prompts
from gateway.engines.local.supervisor import Supervisor
from gateway.engines.local.text_tools import LocalTextTools
from gateway.errors import BundleError, EngineFailed, GatewayError, InvalidRequest, ModelNotReady
from gateway.generation import Generation, Meter, Usage
from gateway.worker.entry import encoder_worker
from gateway.worker.frames import Cancel, Embed, FromWorker


class EncoderPrepared(Prepared, frozen=True, kw_only=True):
    plan: Plan
    ids: list[list[int]]
    firsts: list[int]
    dimensions: int


class EncoderEngine:
    """A bundle of an encoder on this machine, run by a worker process. Implements Engine. Args: see LocalEngine."""

    takes_turns = True

    def __init__(
        self,
        name: str,
        model: LocalModel,
        models_dir: Path,
        *,
        entry: Entry = encoder_worker,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._model = name, model
        self._path, self._entry = models_dir / model.path, entry
        self._prompts: Prompts | None = None  # None before the first load
        self._info: EncoderInfo | None = None
        self._running: dict[int, EmbeddingRun] = {}  # by the id of the request at the worker
        self._ids = itertools.count(1)
        self._supervisor = Supervisor(
            name,
            self._worker,
            load_timeout_s=model.load_timeout_s,
            watchdog_s=model.watchdog_s,
            on_frame=self._receive,
            on_lost=self._fail_all,
            clock=clock,
        )
        self._integrity = IntegrityCheck(name, self._path, bool(model.source), self._supervisor.discard)
        self.text_tools = LocalTextTools(self._ready_prompts)

    @property
    def status(self) -> EngineStatus:
        supervisor, ready = self._supervisor, self._supervisor.ready
        can = self._capabilities
        if self._integrity.damage:
            return EngineStatus(state="failed", detail=self._integrity.damage, capabilities=can)
        if ready is None:
            return EngineStatus(state=supervisor.state, detail=supervisor.detail, capabilities=can)
        if self._prompts is None or not self._prompts.is_started:
            return EngineStatus(state="loading", detail="reading its tokenizer", capabilities=can)
        return EngineStatus(
            state=supervisor.state,
            detail=supervisor.detail,
            device=ready.device,
            soc=ready.soc,
            context_length=ready.context_length,
            restarts=supervisor.restarts,
            placement=ready.placement,
            passes=ready.passes,
            pid=supervisor.pid,
            load_s=ready.load_s + ready.warm_up_s,
            peak_bytes=ready.peak_bytes,
            capabilities=can,
        )

    async def start(self) -> None:
        """Read the bundle, start the worker, wait until it is warm. Raises BundleError, EngineFailed."""
        await self._integrity.require_intact()
        try:
            await self._start_processes()
        finally:
            await self._integrity.start()  # also after a failure: a damaged file can be its reason

    async def lost(self) -> str:
        return await self._supervisor.lost()

    def breaker_opened(self) -> None: ...

    def free_cache(self) -> None: ...

    async def aclose(self) -> None:
        self._fail_all(EngineFailed(f"The model '{self._name}' was closed."))
        await self._integrity.aclose()
        await self._supervisor.aclose()
        await self._close_prompts()

    async def prepare(self, generation: Generation) -> EncoderPrepared:
        prompts, inputs = self._ready_prompts(), self._inputs(generation)
        assert self._info is not None
        if inputs.dimensions > self._info.dimensions:
            raise InvalidRequest(
                f"The vectors of '{self._name}' have {self._info.dimensions} dimensions; send at most that.",
                param="dimensions",
            )
        longest = self.status.context_length
        encoded = await encode(inputs, prompts, self._info, longest, generation.client)
        check_known(encoded.ids, prompts, self._info, inputs.param)
        ready = self._supervisor.ready
        plan = Plan(
            prompt_tokens=sum(map(len, encoded.ids)),
            chunk_width=ready.prompt_width if ready else longest,
            max_tokens=1,
            cut_texts=encoded.cut,
        )
        return EncoderPrepared(
            generation=generation, plan=plan, ids=encoded.ids, firsts=encoded.firsts, dimensions=inputs.dimensions
        )

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        assert isinstance(prepared, EncoderPrepared)
        self._ready_prompts()  # the worker may have died since `prepare`
        frame = Embed(
            id=next(self._ids),
            ids=prepared.ids,
            firsts=prepared.firsts,
            dimensions=prepared.dimensions,
            background=prepared.generation.background,
            client=prepared.generation.client,
        )
        is_score = self._info is not None and self._info.kind == "cross-encoder"
        run = EmbeddingRun(frame, is_score, meter, emit, self._supervisor.call_s)
        self._supervisor.send(frame)
        self._running[frame.id] = run
        try:
            return await run.finished()
        except asyncio.CancelledError:
            meter.call_cut()
            raise
        finally:
            meter.call_ended()
            if self._running.pop(frame.id, None) is not None:
                self._supervisor.send(Cancel(frame.id))

    @property
    def _capabilities(self) -> tuple[Capability, ...]:
        if self._info is None:
            try:
                self._info = load_encoder_bundle(self._path).info
            except BundleError:
                return ("embeddings", "rerank")
        return ("rerank",) if self._info.kind == "cross-encoder" else ("embeddings",)

    def _inputs(self, generation: Generation) -> Inputs:
        """Raises InvalidRequest for a request of another kind. Usually the router has refused it before."""
        need = {"embedding": "texts", "cross-encoder": "pairs"}[self._info.kind if self._info else "embedding"]
        if isinstance(generation.prompt, Inputs) and getattr(generation.prompt, need):
            return generation.prompt
        what = "embeddings of texts" if need == "texts" else "scores of pairs of texts"
        raise InvalidRequest(f"The model '{self._name}' makes only {what}.", param="model")

    async def _start_processes(self) -> None:
        if self._supervisor.ready is not None and self._prompts is not None and self._prompts.is_started:
            return await self._supervisor.start()
        await self._close_prompts()
        bundle = await asyncio.to_thread(load_encoder_bundle, self._path)
        self._info, self._prompts = bundle.info, Prompts(bundle, "")
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

    def _receive(self, frame: FromWorker) -> None:
        """Handle a frame from the worker. It also means that a device call has returned and the next one runs."""
        for running in self._running.values():
            running.device_reported()
        run = self._running.get(getattr(frame, "id", None) or 0)
        if run is None:
            return  # the request was cancelled before
        run.take(frame)
        if run.is_over:
            del self._running[run.id]

    def _fail_all(self, error: GatewayError) -> int:
        """End every running request with `error`. Returns how many there were."""
        failed = list(self._running.values())
        self._running.clear()
        for run in failed:
            run.fail(error)
        return len(failed)
