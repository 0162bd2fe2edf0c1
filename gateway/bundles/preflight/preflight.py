"""Compares a bundle with a machine before a native library reads a byte of it.

The sources are the bundle's small files and the sizes of its large ones. The libraries' own answers to a wrong bundle
are bare numbers (gateway/qnn/driver_errors.py), or a crash. gateway/qnn/context.py compares what a context binary
states about itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct

from gateway.bundles.disk import megabytes
from gateway.bundles.identify import Found, identify
from gateway.bundles.preflight.files import faults, files_of, weight_bytes
from gateway.bundles.preflight.stated import Stated, is_newer, read_stated
from gateway.errors import BundleUnfit

_log = logging.getLogger(__name__)

#: Context binaries in one process. A public report about X2 Elite says that the eighth one did not fit (error 1002).
_MOST_CONTEXTS = 7
_SYSTEM_BYTES = 1_000_000_000  # memory that the system needs itself

UPGRADE = "Run `python -m pip install --upgrade onnxruntime-qnn`, or take an older release of the model."


class Machine(Struct, frozen=True, kw_only=True):
    """What a bundle must fit. None, "", 0 and (): not known, and not compared.

    Args:
        name: of the chip, for people: "Snapdragon X Elite".
        catalog: the command that lists models for it.
        socs: the numbers of the chip.
        architecture: its Hexagon version.
        qairt: the version of the installed runtime.
        memory, available: bytes.
    """

    name: str = ""
    catalog: str = "npu-gateway catalog"
    socs: tuple[int, ...] = ()
    architecture: int | None = None
    qairt: str = ""
    memory: int = 0
    available: int = 0


class Finding(Struct, frozen=True):
    """`refused`: the bundle cannot be served. Starts with the name of the bundle or of a file."""

    level: Literal["refused", "warning"]
    text: str


def preflight(found: Found, machine: Machine, name: str) -> Iterator[Finding]:
    """Yield what speaks against the bundle on the machine, the most fundamental first. `name`: of the bundle."""
    if found.refusal is not None:
        yield Finding("refused", f"{name} {found.refusal}")
        return
    files, stated = files_of(found.root), read_stated(found.root)
    for text in (wrong_chip(name, stated, machine), newer_runtime(name, stated.qairt, machine.qairt)):
        if text:
            yield Finding("refused", text)
    yield from (Finding("refused", f"{name}: {fault}") for fault in faults(files, found.layout))
    yield from _memory(name, weight_bytes(files), machine)
    contexts = sum(file.name.endswith(".bin") for file in files)
    if contexts > _MOST_CONTEXTS:
        yield Finding(
            "warning", f"{name} has {contexts} context binaries. More than {_MOST_CONTEXTS} may not fit on the NPU."
        )


def require_fit(path: Path, machine: Machine) -> None:
    """Raise BundleUnfit with the first refusal. Warnings are logged.

    Args:
        path: the bundle's folder, or a file in it.
    """
    folder = path if path.is_dir() else path.parent
    for finding in preflight(identify(folder), machine, folder.name):
        if finding.level == "refused":
            raise BundleUnfit(finding.text)
        _log.warning("%s", finding.text)


def wrong_chip(name: str, stated: Stated, machine: Machine) -> str:
    """The refusal of a bundle for another chip; "" if it fits or if one of the chips is not known."""
    other_version = bool(stated.architecture and machine.architecture and stated.architecture != machine.architecture)
    other_chip = bool(stated.soc and machine.socs and stated.soc not in machine.socs)
    if not other_version and not other_chip:
        return ""
    own = f"v{machine.architecture}" if other_version else f"chip {machine.socs[0]}"
    target = stated.target if other_version else f"{stated.target}, chip {stated.soc},"
    return (
        f"{name} is compiled for {target} and this NPU is {own}{f' ({machine.name})' if machine.name else ''}. "
        f"`{machine.catalog}` lists models for it."
    )


def newer_runtime(name: str, made_with: str, installed: str) -> str:
    """The refusal of a bundle that a newer runtime has made; "" for an older one, which is read."""
    if not is_newer(made_with, installed):
        return ""
    return f"{name} was made with QAIRT {made_with}, and the installed runtime has {installed}. {UPGRADE}"


def _memory(name: str, needed: int, machine: Machine) -> Iterator[Finding]:
    if machine.memory and needed + _SYSTEM_BYTES > machine.memory:
        yield Finding(
            "refused",
            f"{name} needs about {megabytes(needed + _SYSTEM_BYTES)} of memory, and this machine has "
            f"{megabytes(machine.memory)}. Choose a smaller model: `{machine.catalog}`.",
        )
    elif machine.available and needed > machine.available:
        yield Finding(
            "warning",
            f"{name} needs about {megabytes(needed)} of memory, and {megabytes(machine.available)} are free now. Close "
            "other programs if it does not load, or answers slowly.",
        )
