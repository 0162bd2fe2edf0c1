"""Memory and free disk space against the bundles, before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
from msgspec import Struct

from gateway.bundles.disk import free_bytes, megabytes
from gateway.bundles.preflight.files import files_of, weight_bytes
from gateway.commands.doctor.finding import Finding
from gateway.commands.models.model_state import bundle_folders
from gateway.config.tables import Config
from gateway.qnn.detect import may_have_npu

_SYSTEM_BYTES = 1_000_000_000  # memory that the system needs itself
_BUSY_PERCENT = 80
_LITTLE_DISK = 1_000_000_000
_SMALLER = "remove a model from the configuration, or choose a smaller one: `npu-gateway catalog`"


class Memory(Struct, frozen=True, kw_only=True):
    """Bytes. `swapped`: in use of the swap file."""

    total: int
    available: int
    swapped: int = 0


def read_memory() -> Memory:
    memory = psutil.virtual_memory()
    return Memory(total=memory.total, available=memory.available, swapped=psutil.swap_memory().used)


def weights(config: Config) -> dict[str, int]:
    """Bytes of weights of each model on this machine: the least that it needs in memory."""
    found = {}
    for name, model in config.models.items():
        folders = [folder for folder in bundle_folders(model) if folder.is_dir()]
        uses_npu = may_have_npu() or getattr(model, "provider", "qnn") == "qnn"
        if folders:  # the first one is for the CPU
            found[name] = max(weight_bytes(files_of(folder)) for folder in (folders if uses_npu else folders[:1]))
    return found


def memory_findings(needs: Mapping[str, int], memory: Memory, *, is_running: bool) -> Iterator[Finding]:
    """Args:
    needs: model -> bytes of its weights.
    is_running: the gateway runs, so what it needs is not free any more.
    """
    needed = sum(needs.values())
    has = f"{megabytes(memory.total)}, {megabytes(memory.available)} free"
    what = f"the weights of {', '.join(needs)} need about {megabytes(needed)}" if needs else "no model is here yet"
    if needed + _SYSTEM_BYTES > memory.total:
        because = f"{what}, and this machine has {megabytes(memory.total)} of memory"
        yield Finding("bad", "memory", because, "memory", because, _SMALLER)
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
    yield from memory_findings(weights(config), read_memory(), is_running=is_running)
    folder = next((each for each in (config.models_dir, *config.models_dir.parents) if each.is_dir()), Path.cwd())
    yield from disk_findings(config.models_dir, free_bytes(folder))
    yield from load_findings(psutil.cpu_percent(0.5))
