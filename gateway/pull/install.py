"""From downloaded files to a complete folder in the models folder, in one step that other programs see."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from gateway.bundles.disk import megabytes, require_space
from gateway.bundles.hashes import write_hashes
from gateway.bundles.identify import SOURCES, Found, require_servable
from gateway.bundles.origin import Origin, write_origin
from gateway.bundles.preflight.preflight import Machine, newer_runtime, preflight
from gateway.bundles.preflight.stated import read_stated
from gateway.bundles.replace import new_folder
from gateway.errors import BundleError

_SYSTEM_BYTES = 1_000_000_000  # memory that the system needs itself


class RefusedError(BundleError):
    """The files themselves are wrong, so they are of no use for a second attempt."""


def require_resources(models_dir: Path, size: int, what: str, *, copies: int = 2) -> None:
    """Compare free disk and memory with a model of `size` bytes, before its download.

    Args:
        copies: how often the bytes will be on the disk at once: the zip and its content.
    Raises BundleError that names what is missing.
    """
    memory = psutil.virtual_memory().total
    if size + _SYSTEM_BYTES > memory:
        raise BundleError(
            f"{what} needs about {megabytes(size + _SYSTEM_BYTES)} of memory, and this machine has "
            f"{megabytes(memory)}. Choose a smaller model: `npu-gateway catalog`."
        )
    require_space({models_dir: copies * size}, f"{what}, with its unpacked files,")


def install(folder: Path, fill: Callable[[Path], None], origin: Origin, machine: Callable[[], Machine]) -> Found:
    """Make `folder` from the files that `fill` puts into an empty one. Returns its layout.

    Args:
        machine: what the bundle must fit.
    Raises RefusedError if they are no bundle that the gateway serves on the machine; then nothing is changed.
    """
    with new_folder(folder) as building:
        fill(building)
        with _refusals(building, folder.name):
            found = require_servable(building)
        if found.layout in SOURCES:
            raise RefusedError(
                f"{folder.name} holds weights and no bundle. Unpack it, and pull the .gguf file or the folder with "
                "config.json."
            )
        require_fit(found, folder.name, machine)
        _hoist(building, Path(str(found.root)))
        write_origin(building, origin)
        write_hashes(building)
        return found


def require_fit(found: Found, name: str, machine: Callable[[], Machine]) -> None:
    """Raise RefusedError with what speaks against the bundle on the machine. `name`: of the bundle.

    Raises BundleError if a newer runtime would load it: then the download is kept.
    """
    stated = read_stated(found.root)
    is_compiled = stated.soc is not None or stated.architecture is not None or bool(stated.qairt)
    fits = machine() if is_compiled else Machine()
    for finding in preflight(found, fits, name):
        if finding.level == "refused":
            is_new = finding.text == newer_runtime(name, stated.qairt, fits.qairt)
            raise (BundleError if is_new else RefusedError)(finding.text)


@contextmanager
def _refusals(building: Path, name: str) -> Iterator[None]:
    """A refusal names the model, not the folder that it is unpacked in."""
    try:
        yield
    except BundleError as error:
        raise RefusedError(error.message.replace(building.name, name)) from error


def link_files(source: Path, folder: Path, names: Iterable[str]) -> None:
    """Give these files of `source` a second name in `folder`, or copy them where the file system has no links."""
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, target)
        except OSError:
            shutil.copyfile(source / name, target)


def _hoist(building: Path, root: Path) -> None:
    """Move the files of the only folder in a zip up."""
    if root == building:
        return
    moved = building / f".{uuid.uuid4().hex}"
    root.rename(moved)
    for child in moved.iterdir():
        child.replace(building / child.name)
    moved.rmdir()
