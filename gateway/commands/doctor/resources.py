"""Memory and free disk space against the bundles, before anything is loaded; and the database of [state]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import psutil
from msgspec import Struct
from msgspec.structs import replace

from gateway.bundles.disk import data_folder, free_bytes, megabytes
from gateway.commands import options
from gateway.commands.doctor.finding import Finding
from gateway.commands.models.model_state import bundle_folders
from gateway.config.tables import BundleModel, Config
from gateway.lanes.memory.needs import FILE, Need, Needs, budget_bytes
from gateway.qnn.device import may_have_npu
from gateway.state.database import StateError
from gateway.state.keys import list_keys

_BUSY_PERCENT = 80
_LITTLE_DISK = 1_000_000_000
_SMALLER = "raise [memory] budget_mb, or choose a smaller model: `npu-gateway catalog`"


class Memory(Struct, frozen=True, kw_only=True):
    """Bytes. `swapped`: in use of the swap file."""

    total: int
    available: int
    swapped: int = 0


def read_memory() -> Memory:
    memory = psutil.virtual_memory()
    return Memory(total=memory.total, available=memory.available, swapped=psutil.swap_memory().used)


def needs_of(config: Config, measured: Needs) -> dict[str, Need]:
    """What each model on this machine needs. Nothing is loaded."""
    found, budget = {}, budget_bytes(config.memory)
    for name, model in config.models.items():
        folders = [folder for folder in bundle_folders(model) if folder.is_dir()]
        uses_npu = may_have_npu() or getattr(model, "provider", "qnn") == "qnn"
        if folders and isinstance(model, BundleModel):  # the first one is for the CPU
            used = folders if uses_npu else folders[:1]
            needs = [measured.of(replace(model, path=str(folder)), budget) for folder in used]
            found[name] = max(needs, key=lambda need: need.least_bytes)
    return found


def memory_findings(needs: Mapping[str, Need], memory: Memory, budget: int, *, is_running: bool) -> Iterator[Finding]:
    """Args:
    needs: of each model.
    budget: bytes for all models together.
    is_running: the gateway runs, so what it needs is not free any more.
    """
    needed = sum(need.bytes for need in needs.values())
    has = f"{megabytes(memory.total)}, {megabytes(memory.available)} free"
    sizes = ", ".join(f"{name} {need.shown}" for name, need in needs.items())
    what = f"needed: {sizes}; all models together have {megabytes(budget)}" if needs else "no model is here yet"
    refused = ((name, need.window.refusal(budget)) for name, need in needs.items() if need.window)
    if too_long := next((f"{name} {reason}" for name, reason in refused if reason), ""):
        because, _, step = too_long.partition(": ")
        yield Finding("bad", "memory", f"{what}; {because}", "memory", because, step)
    elif large := [name for name, need in needs.items() if need.least_bytes > budget]:
        because = f"{large[0]} needs {megabytes(needs[large[0]].least_bytes)}, and all models have {megabytes(budget)}"
        yield Finding("bad", "memory", f"{what}; {because}", "memory", because, _SMALLER)
    elif needed > budget:
        because = f"{what}, so they take turns: each load takes time"
        yield Finding("note", "memory", because, "", because)
    elif needed > memory.available and not is_running:
        because = f"{what}, and only {megabytes(memory.available)} of memory are free"
        yield Finding("note", "memory", because, "memory pressure", because, "close other programs")
    elif is_running and memory.available < memory.total / 20:
        because = f"only {megabytes(memory.available)} of {megabytes(memory.total)} of memory are free"
        yield Finding("note", "memory", because, "memory pressure", because, "close other programs")
    else:
        yield Finding("ok", "memory", f"{has}; {what}")


def disk_findings(folder: Path, free: int) -> Iterator[Finding]:
    """`free`: bytes on the volume of the models folder."""
    text = f"{megabytes(free)} free for {folder}"
    if free < _LITTLE_DISK:
        step = "free some space, or set `models_dir` to a folder on another volume"
        yield Finding("note", "disk", text, "disk", f"only {text}", step)
    else:
        yield Finding("ok", "disk", text)


def load_findings(percent: float) -> Iterator[Finding]:
    """`percent`: of all processors, used by all programs before anything is measured."""
    if percent > _BUSY_PERCENT:
        because = f"the processors are {percent:.0f} % busy, before anything is measured"
        yield Finding(
            "note", "processors", because, "busy", because, "end other programs, then run `npu-gateway doctor` again"
        )
    else:
        yield Finding("ok", "processors", f"{percent:.0f} % in use")


def resources(config: Config, *, is_running: bool) -> Iterator[Finding]:
    needs = needs_of(config, Needs(data_folder() / FILE))
    yield from memory_findings(needs, read_memory(), budget_bytes(config.memory), is_running=is_running)
    folder = next((each for each in (config.models_dir, *config.models_dir.parents) if each.is_dir()), Path.cwd())
    yield from disk_findings(config.models_dir, free_bytes(folder))
    yield from load_findings(psutil.cpu_percent(0.5))


def database(config: Config) -> Iterator[Finding]:
    """The database of [state]: does it answer, is it of this version, and does it have the keys that requests need?

    Raises GatewayError: the driver is not installed.
    """
    with closing(options.open_state(config)) as opened:
        try:
            keys = [key for key in list_keys(opened) if key.revoked is None]
        except StateError as error:
            yield _without_database(str(error), has_keys=config.state.keys)
            return
        shown = f"{opened.label}, keys: {len(keys)}"
    if config.state.keys and not keys and not config.server.api_keys:
        because = "[state] keys = true, and there is no API key yet, so each request gets 401"
        yield Finding("bad", "database", f"{shown}; {because}", "database", because, "`npu-gateway keys add NAME`")
    else:
        yield Finding("ok", "database", shown)


def _without_database(problem: str, *, has_keys: bool) -> Finding:
    """A gateway answers without its database, except if it has to read keys."""
    if not has_keys:
        return Finding("note", "database", f"{problem.rstrip('.')}. Answers go on, see docs/state.md")
    because = f"the database with the API keys cannot be read: {problem}"
    return Finding("bad", "database", because, "database", because, "correct [state] url, or start that database")
