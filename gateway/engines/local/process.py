"""One worker process from start to end: its pipe, the two threads for the pipe, and how it is stopped.

A pipe can block at both ends: a worker does not read during some device calls. So the event loop does not use the pipe.
One thread reads and one writes. Both end with the process.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from gateway.activity import Activity
from gateway.bundles.stamp import built_folder
from gateway.config.tables import GenieModel, LocalModel
from gateway.worker.entry import local_worker
from gateway.worker.frames import (
    Message,
    Shutdown,
    ToWorker,
    WorkerSpec,
    decode_from_worker,
    encode,
)

_log = logging.getLogger(__name__)
_KILL_S = 5.0  # limit of the wait for a killed process or a thread

Entry = Callable[[Connection, WorkerSpec, Activity], None]


class Spawned(NamedTuple):
    """A process that runs, our end of its pipe, and what it does now, in shared memory."""

    process: SpawnProcess
    connection: Any  # a Connection, on Windows a PipeConnection
    activity: Activity


def spawn(name: str, spec: WorkerSpec, entry: Entry, activity: Activity | None = None) -> Spawned:
    """Spawn the worker of the model `name`. Raises OSError, RuntimeError or MemoryError if the system refuses it."""
    context = multiprocessing.get_context("spawn")
    activity = activity or Activity(context)
    ours, theirs = context.Pipe()
    process = context.Process(target=entry, args=(theirs, spec, activity), name=f"{name} worker", daemon=True)
    try:
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return Spawned(process, ours, activity)


class WorkerProcess:
    """Spawned by `start`, gone after `stop`. Cannot be started again.

    Args:
        name: of the model; part of the names of the process and its threads.
        on_message: called on the event loop with each message, in order.
        entry: the function that runs in the process; it must be importable.
        spawned: the process, if it has been spawned before.
    """

    def __init__(
        self,
        name: str,
        spec: WorkerSpec,
        on_message: Callable[[Message], None],
        entry: Entry = local_worker,
        spawned: Spawned | None = None,
    ) -> None:
        self._name, self._spec, self._entry = name, spec, entry
        self._on_message = on_message
        self._spawned = spawned
        #: What the process does now, in shared memory.
        self.activity = spawned.activity if spawned else Activity(multiprocessing.get_context("spawn"))
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._process: SpawnProcess | None = None
        self.pid: int | None = None  # None before `start`
        self._threads: list[threading.Thread] = []
        self._ending: asyncio.Task[None] | None = None
        #: Set when the process has closed its end of the pipe, after its last frame.
        self.gone = asyncio.Event()
        #: How the process ended, for a person; "" before `stop` has returned.
        self.exit = ""

    async def start(self) -> None:
        """Spawn the process."""
        self._loop = asyncio.get_running_loop()
        spawning = asyncio.ensure_future(asyncio.to_thread(self._spawn))
        try:
            await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await spawning  # `stop` needs the process
            raise

    def send(self, frame: ToWorker) -> None:
        """Queue a frame for the process. A frame for a process that is gone is lost.

        Raises what the encoder raises, so a frame that cannot be sent fails its own request.
        """
        self._outbox.put(encode(frame))

    def kill(self) -> None:
        """Kill the process. `gone` follows; `stop` is still necessary."""
        if self._process is not None and self._ending is None:
            self._process.kill()

    async def stop(self, grace_s: float) -> None:
        """End the process: with a Shutdown frame, and with a kill after `grace_s` seconds.

        Returns when process, threads and pipe are gone.
        """
        if self._process is None:
            return
        if self._ending is None:
            self.send(Shutdown())
            self._ending = asyncio.ensure_future(asyncio.to_thread(self._end, self._process, grace_s))
        await asyncio.shield(self._ending)

    def _spawn(self) -> None:
        spawned = self._spawned or spawn(self._name, self._spec, self._entry, self.activity)
        self._connection, self._process, self.pid = spawned.connection, spawned.process, spawned.process.pid
        for what, target in (("reader", self._read), ("writer", self._write)):
            thread = threading.Thread(target=target, name=f"{self._name} {what}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def _read(self) -> None:
        try:
            while True:
                self._call(self._on_message, decode_from_worker(self._connection.recv_bytes()))
        except (EOFError, OSError):
            pass  # the process is gone
        except msgspec.MsgspecError:
            _log.exception("%s: the worker sent data that is not a frame", self._name)
        finally:
            with suppress(EOFError):
                self._call(self.gone.set)

    def _write(self) -> None:
        try:
            while (frame := self._outbox.get()) is not None:
                self._connection.send_bytes(frame)
        except OSError:
            pass  # the process is gone

    def _call(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            raise EOFError from None  # the event loop is gone

    def _end(self, process: SpawnProcess, grace_s: float) -> None:
        process.join(grace_s)
        if process.is_alive():
            process.kill()  # a worker ignores SIGTERM
            process.join(_KILL_S)
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(_KILL_S)
        self._connection.close()
        if process.is_alive():
            _log.error(
                "%s: worker process %s cannot be killed, because a driver call blocks it; restart the machine",
                self._name,
                process.pid,
            )
            return
        self.exit = describe_exit(process.exitcode or 0)
        process.close()


def describe_exit(code: int) -> str:
    """An exit code as documentation shows it: the name of the signal, or the Windows status in hexadecimal."""
    if code < 0:
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"
    return f"status 0x{code:08X}" if sys.platform == "win32" and code > 255 else f"exit code {code}"


def spec_of(model: LocalModel | GenieModel, bundle: Path) -> WorkerSpec:
    """What the worker of the bundle in the folder `bundle` gets."""
    spec = WorkerSpec(
        bundle=str(bundle),
        max_sequences=model.max_sequences,
        prefix_cache=model.prefix_cache,
        context_length=model.context_length,
    )
    if isinstance(model, GenieModel):
        return replace(spec, poll=model.poll)
    return replace(
        spec,
        provider=model.provider,
        provider_options=model.provider_options,
        threads=model.threads,
        tokenizer=model.tokenizer,
        draft=str(built_folder(Path(model.draft))) if model.draft else "",
    )
