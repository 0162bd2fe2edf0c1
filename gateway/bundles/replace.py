"""Makes and replaces folders. A reader, a second program and a power loss find a complete old or a complete new one.

    .NAME.lock             held by the program that writes NAME; the system releases it when that process ends
    .NAME.HEX.building     incomplete
    .NAME.HEX.fetched      a download for NAME
    .NAME.new              complete and on the disk. From here on the new state holds
    .NAME.old              the old folder, while it is removed

NAME becomes .NAME.old, and .NAME.new becomes NAME. Windows cannot exchange two folders in one step, so an interruption
between the two renames leaves no NAME: `finish_replacement` completes it before NAME is read.

Linux and macOS let a running gateway keep the files of the old folder. Windows refuses to rename a folder whose files
are open. Then .NAME.new stays, and the next start of the gateway or of a build completes the replacement.
"""

from __future__ import annotations

import glob
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gateway.bundles.disk import require_writable, sync_folder, sync_tree, write_error
from gateway.errors import BundleError

_HEX = 8  # digits in the name of an incomplete folder
_LOCKED_S = 10.0  # limit of the wait for a program that completes a replacement, which takes less
_RENAME_S = 2.0  # Windows: a virus scanner opens new files for a moment


@contextmanager
def exclusive(folder: Path, on_wait: Callable[[], None] = lambda: None, timeout_s: float = -1) -> Iterator[None]:
    """Hold the lock of `folder`. A thread may take it several times.

    Args:
        on_wait: called if another program holds it.
        timeout_s: limit of the wait; -1: none. Afterwards Timeout of `filelock` is raised.
    Raises BundleError if the folder around it cannot be written.
    """
    from filelock import FileLock, Timeout

    require_writable(folder.parent)
    file = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(file, is_singleton=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        lock.acquire(timeout=timeout_s)
    try:
        yield
    finally:
        if sys.platform != "win32" and lock.lock_counter == 1:
            file.unlink(missing_ok=True)  # a program that waits notices that, and makes a new file
        lock.release()


@contextmanager
def new_folder(folder: Path, on_wait: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield an empty folder that replaces `folder` at the end, unless an exception is raised.

    Raises BundleError if the disk is full or cannot be written, or if `folder` is in use (on Windows).
    """
    with exclusive(folder, on_wait):
        remove_leftovers(folder)
        building = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:_HEX]}.building")
        try:
            building.mkdir()
            yield building
            sync_tree(building)
            _discard(_new(folder))
            rename(building, _new(folder))
            sync_folder(folder.parent)
        except OSError as error:
            raise write_error(folder, error) from error
        finally:
            shutil.rmtree(building, ignore_errors=True)
        _complete(folder)


@contextmanager
def fetched_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder for a download for `folder`, on the same volume. The caller holds the lock of `folder`."""
    remove_leftovers(folder)
    for left in _leftovers(folder, "fetched"):
        shutil.rmtree(left, ignore_errors=True)
    fetched = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:_HEX]}.fetched")
    try:
        fetched.mkdir()
        yield fetched
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        shutil.rmtree(fetched, ignore_errors=True)


def finish_replacement(folder: Path) -> None:
    """Complete a replacement that was interrupted, and remove what a killed program left.

    Does nothing if another program writes `folder`, or if that is not possible now.
    """
    from filelock import Timeout

    is_complete = _new(folder).is_dir()
    left = [*_leftovers(folder, "building"), *_leftovers(folder, "fetched")]
    if is_complete or left or _old(folder).is_dir():
        with suppress(BundleError, OSError, Timeout), exclusive(folder, timeout_s=_LOCKED_S if is_complete else 0):
            for each in left:
                _discard(each)
            _complete(folder)


def remove_leftovers(folder: Path) -> None:
    """Complete or remove what killed programs left. The caller holds the lock, so no other program uses it."""
    with suppress(BundleError):
        _complete(folder)
    for left in _leftovers(folder, "building"):
        shutil.rmtree(left, ignore_errors=True)


def _complete(folder: Path) -> None:
    """Replace NAME by .NAME.new, if there is one. Raises BundleError if that is not possible now."""
    new, old = _new(folder), _old(folder)
    _discard(old)
    if not new.is_dir():
        return
    try:
        if folder.exists():
            rename(folder, old)
        rename(new, folder)
        sync_folder(folder.parent)
    except OSError as error:
        if old.exists() and not folder.exists():
            with suppress(OSError):
                rename(old, folder)
        raise BundleError(
            f"The new {folder.name} is complete, but the old one cannot be replaced ({error.strerror or error}). Stop "
            "the programs that use it. The next start of the gateway uses the new one."
        ) from error
    _discard(old)


def _leftovers(folder: Path, kind: str) -> list[Path]:
    """Not those of another folder whose name begins with this one: `model` and `model.v2`."""
    return list(folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * _HEX}.{kind}"))


def _new(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _discard(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def rename(source: Path, target: Path) -> None:
    """Give a folder another name. Raises OSError; on Windows it tries for a moment."""
    until = time.monotonic() + (_RENAME_S if sys.platform == "win32" else 0)
    while True:
        try:
            source.rename(target)
            return
        except PermissionError:
            if time.monotonic() >= until:
                raise
        time.sleep(0.05)
