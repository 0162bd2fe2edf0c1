"""Starts the processes of one model before this process has imported its server, so that both happen at the same time.

To import the server takes half as long as to load a model of a billion weights. The engine of the model takes the
processes if it would start them in the same way; else it starts others, and these are ended.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from gateway.config.tables import LocalModel
from gateway.engines.local.process import Entry, Spawned, spawn, spec_of
from gateway.worker.entry import local_worker
from gateway.worker.frames import WorkerSpec

if TYPE_CHECKING:
    from gateway.engines.local.prompts import Prompts

_END_S = 5.0
_Begun = TypeVar("_Begun")


class _Worker(Struct, frozen=True):
    spec: WorkerSpec
    spawned: Spawned


class _Prompts(Struct, frozen=True):
    folder: Path
    dialect: str
    tokenizer: str
    prompts: Prompts


_workers: dict[str, _Worker] = {}  # by the name of the model
_prompts: dict[str, _Prompts] = {}


@contextmanager
def head_start(found: tuple[str, LocalModel] | None, models_dir: Path, budget_bytes: float) -> Iterator[None]:
    """Start the processes of a model. At the end of the block, end them if no engine has taken them.

    Args:
        found: the name and the table of the model, with the path of its bundle; None: no model.
        models_dir: the folder that the path is relative to.
        budget_bytes: for all models together; it limits the context.
    """
    try:
        if found:
            with suppress(Exception):  # the engine reports it
                _start(*found, models_dir, budget_bytes)
        yield
    finally:
        end_unused()


def take_worker(name: str, spec: WorkerSpec, entry: Entry) -> Spawned | None:
    """The worker of a model, once. None: there is none, or it was started in another way."""
    worker = _taken(_workers, name, lambda begun: entry is local_worker and begun.spec == spec)
    return worker.spawned if worker else None


def take_prompts(name: str, folder: Path, dialect: str, tokenizer: str) -> Prompts | None:
    """The processes for the prompts of a model, once. None: as for `take_worker`."""
    wanted = folder, dialect, tokenizer
    found = _taken(_prompts, name, lambda begun: (begun.folder, begun.dialect, begun.tokenizer) == wanted)
    return found.prompts if found else None


def end_unused() -> None:
    """End the processes that no engine has taken. Blocks until they are gone."""
    for name in list(_workers):
        if worker := _workers.pop(name, None):
            worker.spawned.process.kill()
            worker.spawned.process.join(_END_S)
            worker.spawned.connection.close()
    for name in list(_prompts):
        if found := _prompts.pop(name, None):
            found.prompts.end()


def _taken(begun: dict[str, _Begun], name: str, fits: Callable[[_Begun], bool]) -> _Begun | None:
    """Take out before the comparison: another thread can end what is unused at the same time."""
    found = begun.pop(name, None)
    if found is None or fits(found):
        return found
    begun[name] = found
    return None


def _start(name: str, model: LocalModel, models_dir: Path, budget_bytes: float) -> None:
    from gateway.bundles.encoder.bundle import is_encoder_bundle
    from gateway.bundles.kv_cache.window import read_window

    folder = models_dir / model.path
    configured = model.context_length
    window = read_window(
        folder,
        sequences=model.max_sequences,
        configured=configured,
        budget_bytes=budget_bytes,
        draft=model.draft,
    )
    if is_encoder_bundle(folder) or (window and window.refusal(budget_bytes)):
        return
    context = window.context if window and window.note else configured
    spec = spec_of(replace(model, context_length=context), folder)
    with _no_interrupt():
        _workers[name] = _Worker(spec, spawn(name, spec, local_worker))
    _prompts[name] = _Prompts(folder, model.dialect, model.tokenizer, _open_prompts(model, folder))


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """A worker ignores Ctrl-C, but until it has imported what it needs for that, it would print a traceback.

    It inherits this, except on Windows. Only for the main thread.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _open_prompts(model: LocalModel, folder: Path) -> Prompts:
    from gateway.bundles.open import open_bundle
    from gateway.engines.local.prompts import Prompts

    prompts = Prompts(open_bundle(folder, model.dialect, model.tokenizer), model.dialect)
    prompts.begin()
    return prompts
