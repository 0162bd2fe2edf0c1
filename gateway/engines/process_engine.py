"""What the engines of this machine share: a prompt process, a worker process, and the requests that run at it."""

from __future__ import annotations

import asyncio
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from gateway.config.tables import GenieModel, LocalModel
from gateway.engines.base import EngineStatus
from gateway.engines.head_start import take_worker
from gateway.engines.local.integrity import IntegrityCheck
from gateway.engines.local.process import Entry, WorkerProcess, spec_of
from gateway.engines.local.prompts import Prompts
from gateway.engines.local.sick_start import SickStart
from gateway.engines.local.supervisor import Supervisor
from gateway.engines.local.text_tools import LocalTextTools
from gateway.engines.running_request import RunningRequest
from gateway.errors import EngineFailed, GatewayError, ModelNotReady
from gateway.generation import Meter, Usage
from gateway.worker.frames import Cancel, FrameBatch, FromWorker, Message, Ready

Run = TypeVar("Run", bound=RunningRequest)

_log = logging.getLogger(__name__)


class ProcessEngine(ABC, Generic[Run]):
    """Implements the part of Engine that is about processes. A subclass has `prepare` and `run`.

    Args:
        name: of the model, for messages and the names of processes and threads.
        model: its table in the configuration.
        path: of the bundle.
        folder: with the files of the bundle.
        entry: the function that runs in the worker process.
        clock: seconds, monotonic.
        sick_start: judges the passes of each worker; None: no worker is judged.
    """

    def __init__(
        self,
        name: str,
        model: LocalModel | GenieModel,
        path: Path,
        folder: Path,
        *,
        entry: Entry,
        clock: Callable[[], float],
        sick_start: SickStart | None = None,
    ) -> None:
        self._name, self._model = name, model
        self._path, self._entry = path, entry
        self._prompts: Prompts | None = None  # None before the first load
        self._running: dict[int, Run] = {}  # by the id of the request at the worker
        self._ids = itertools.count(1)
        self._supervisor = Supervisor(
            name,
            self._worker,
            load_timeout_s=model.load_timeout_s,
            watchdog_s=model.watchdog_s,
            on_frame=self._receive,
            on_lost=self._fail_all,
            is_busy=lambda: bool(self._running),
            sick_start=sick_start,
            clock=clock,
        )
        has_source = isinstance(model, LocalModel) and bool(model.source)
        self._integrity = IntegrityCheck(name, folder, has_source, self._supervisor.discard)
        self.text_tools = LocalTextTools(self._ready_prompts)

    @property
    def status(self) -> EngineStatus:
        supervisor = self._supervisor
        if self._integrity.damage:
            return EngineStatus(state="failed", detail=self._integrity.damage)
        if supervisor.ready is None:
            return EngineStatus(state=supervisor.state, detail=supervisor.detail)
        if self._prompts is None or not self._prompts.is_started:
            return EngineStatus(state="loading", detail="reading its tokenizer")
        return self._loaded_status(supervisor.ready)

    async def start(self) -> None:
        """Read the bundle, start the worker, wait until it is warm. Raises BundleError, EngineFailed."""
        await self._integrity.require_intact()
        try:
            await self._start_processes()
        finally:
            await self._integrity.start()  # also after a failure: a damaged file can be its reason

    async def lost(self) -> str:
        return await self._supervisor.lost()

    async def aclose(self) -> None:
        self._fail_all(EngineFailed(f"The model '{self._name}' was closed."))
        await self._integrity.aclose()
        await self._supervisor.aclose()
        await self._close_prompts()

    @abstractmethod
    def _open_prompts(self) -> Prompts:
        """Read the bundle, in a thread. Raises BundleError."""

    def _loaded_status(self, ready: Ready) -> EngineStatus:
        """The status of a model that has loaded."""
        supervisor = self._supervisor
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
        )

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

    def _worker(self, on_message: Callable[[Message], None]) -> WorkerProcess:
        spec = spec_of(self._model, self._path)
        spawned = take_worker(self._name, spec, self._entry)
        return WorkerProcess(self._name, spec, on_message, self._entry, spawned)

    def _ready_prompts(self) -> Prompts:
        """Raises ModelNotReady unless the worker can take a request."""
        status = self.status
        if self._prompts is None or status.state != "ready":
            reason = f"{status.state}: {status.detail}" if status.detail else status.state
            raise ModelNotReady(f"The model '{self._name}' is not ready ({reason}).", retry_after_s=1)
        self._prompts.context_length = status.context_length
        return self._prompts

    async def _finish(self, run: Run, meter: Meter) -> Usage:
        """Wait for the end of a request that was sent to the worker. Cancel the task to cancel the request."""
        self._running[run.id] = run
        try:
            return await run.finished()
        except asyncio.CancelledError:
            meter.call_cut()
            raise
        finally:
            meter.call_ended()
            if self._running.pop(run.id, None) is not None:
                self._supervisor.send(Cancel(run.id))

    def _receive(self, message: Message) -> None:
        """Handle a message of the worker. It also means that a device call has returned and the next one runs."""
        for running in self._running.values():
            running.device_reported()
        for frame in message.frames if isinstance(message, FrameBatch) else (message,):
            self._receive_frame(frame)

    def _receive_frame(self, frame: FromWorker) -> None:
        run = self._running.get(getattr(frame, "id", None) or 0)
        if run is None:
            return  # the request was cancelled before
        try:
            self._take(run, frame)
        except Exception as error:  # a bug in what reads the answer, for example in a parser of its text
            _log.error("%s: the answer could not be read", self._name, exc_info=error)
            unread = f"{self._name} gave an answer that could not be read; the log has the reason."
            run.fail(GatewayError(unread))
            self._supervisor.send(Cancel(run.id))
        if run.is_over:
            del self._running[run.id]

    def _take(self, run: Run, frame: FromWorker) -> None:
        run.take(frame)

    def _fail_all(self, error: GatewayError) -> int:
        """End every running request with `error`. Returns how many there were."""
        failed = list(self._running.values())
        self._running.clear()
        for run in failed:
            run.fail(error)
        return len(failed)
