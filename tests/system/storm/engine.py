"""The local engine, over workers without a model: in a process, or in a task on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from gateway.activity import Activity
from gateway.config.tables import LocalModel
from gateway.engines.local.engine import LocalEngine
from gateway.engines.local.process import WorkerProcess
from gateway.worker.frames import FromWorker, ToWorker
from tests.system.storm import worker
from tests.system.storm.worker import Died, FakeLoop, Hung

STEP_S = 0.01  # what a device call takes in virtual time


class TaskWorker:
    """Has the methods of WorkerProcess. The worker is a task, so virtual time can pass."""

    def __init__(self, on_frame: Callable[[FromWorker], None]) -> None:
        self._loop = FakeLoop(on_frame)
        self._task: asyncio.Task[None] | None = None
        self._has_work = asyncio.Event()
        self.pid = None
        self.activity = Activity()
        self.gone = asyncio.Event()
        self.exit = ""
        self._on_frame = on_frame

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def send(self, frame: ToWorker) -> None:
        self._loop.receive(frame)
        self._has_work.set()

    def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self.gone.set()

    async def stop(self, grace_s: float) -> None:
        self.kill()
        if self._task is not None:
            await asyncio.wait([self._task])
        self.exit = "no process"

    async def _run(self) -> None:
        self._on_frame(worker.ready())
        try:
            while True:
                await self._has_work.wait()
                await asyncio.sleep(STEP_S)
                self._loop.turn()
                if self._loop.is_idle:
                    self._has_work.clear()
        except Died:
            self.activity.enter("in_call")
            self.gone.set()
        except Hung:
            self.activity.enter("in_call")
            await asyncio.Event().wait()


class StormEngine(LocalEngine):
    """The local engine over workers without a model."""

    def __init__(self, name: str, model: LocalModel, folder: Path, processes: bool) -> None:
        clock = asyncio.get_running_loop().time
        super().__init__(name, model, folder, clock=clock)
        self._processes = processes

    def _worker(self, on_frame: Callable[[FromWorker], None]) -> Any:
        if not self._processes:
            return TaskWorker(on_frame)
        return WorkerProcess(self._name, None, on_frame, worker.main)  # type: ignore[arg-type]

    def kill_worker(self) -> None:
        """Kill the worker without a warning, as the system does if memory is short."""
        process = self._supervisor._process
        if process is not None and self.status.state == "ready":
            psutil.Process(process.pid).kill() if process.pid else process.kill()
