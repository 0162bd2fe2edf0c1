"""`new_folder` makes a folder durable before it counts, and completes what an interruption left."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import Timeout

from gateway.bundles import disk, replace
from gateway.bundles.replace import exclusive, fetched_folder, finish_replacement, new_folder
from gateway.errors import BundleError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "file").write_text(text, encoding="utf-8")
    return folder


def content(folder: Path) -> str:
    return (folder / "file").read_text(encoding="utf-8")


@pytest.mark.parametrize("exists", [False, True])
def test_new_folder_appears_complete(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "[m] 1"  # not a pattern
    if exists:
        make(folder, "old")
    with new_folder(folder) as building:
        (building / "file").write_text("new", encoding="utf-8")
        assert folder.exists() == exists
    assert content(folder) == "new" and names(tmp_path) == ["[m] 1"]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_error_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    folder = make(tmp_path / "m", "old")
    with pytest.raises(BundleError if isinstance(error, OSError) else type(error)), new_folder(folder) as building:
        (building / "file").write_text("half", encoding="utf-8")
        raise error
    assert content(folder) == "old" and names(tmp_path) == ["m"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no call for folders")
def test_everything_is_synced_before_the_folder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, Path.rename

    def record_sync(descriptor: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        sync(descriptor)

    def record_rename(source: Path, target: Path) -> Path:
        steps.append(f"rename to {target.name}")
        return rename(source, target)

    monkeypatch.setattr(disk.os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    with new_folder(tmp_path / "m") as building:
        (building / "inner").mkdir()
        for name in ("a", "inner/b"):
            (building / name).write_bytes(b"x")
    expected = ["sync b", "sync inner", "sync a", f"sync {building.name}"]
    assert steps == [*expected, "rename to .m.new", f"sync {tmp_path.name}", "rename to m", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("has_old", [False, True])
def test_interrupted_replacement_is_completed(tmp_path: Path, has_old: bool) -> None:
    """A kill before the first rename, and between the two."""
    folder = tmp_path / "m"
    make(folder if has_old else tmp_path / ".m.old", "old")
    make(tmp_path / ".m.new", "new")
    finish_replacement(folder)
    assert content(folder) == "new" and names(tmp_path) == ["m"]
    finish_replacement(folder)
    assert content(folder) == "new"


def test_incomplete_folders_are_never_completed(tmp_path: Path) -> None:
    make(tmp_path / ".m.00000000.building", "half")
    finish_replacement(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_leftovers_are_removed_by_the_next_program(tmp_path: Path) -> None:
    for name in (
        ".m.00000000.building",
        ".m.00000001.building",
        ".m.00000002.fetched",
        ".m.old",
        ".other.00000000.building",
    ):
        make(tmp_path / name, "half")
    with exclusive(tmp_path / "m"), fetched_folder(tmp_path / "m") as fetched:
        assert fetched.is_dir()
        assert names(tmp_path) == sorted([".m.lock", ".other.00000000.building", fetched.name])
    assert names(tmp_path) == [".other.00000000.building"]


def test_leftovers_are_removed_when_the_folder_is_read(tmp_path: Path) -> None:
    """Also if no program writes the folder again. Not while one does."""
    make(tmp_path / "m", "new")
    left = [".m.00000000.building", ".m.00000002.fetched", ".m.old"]
    for name in left:
        make(tmp_path / name, "half")
    with exclusive(tmp_path / "m"):
        thread = threading.Thread(target=finish_replacement, args=(tmp_path / "m",))
        thread.start()
        thread.join(60)
        assert names(tmp_path) == sorted([*left, ".m.lock", "m"])
    finish_replacement(tmp_path / "m")
    assert names(tmp_path) == ["m"]


def test_replacement_waits_for_the_program_that_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / ".m.new", "new")
    monkeypatch.setattr(replace, "_LOCKED_S", 0.0)
    with exclusive(tmp_path / "m"):
        thread = threading.Thread(target=finish_replacement, args=(tmp_path / "m",))
        thread.start()
        thread.join(60)
        assert not thread.is_alive() and not (tmp_path / "m").exists()
    finish_replacement(tmp_path / "m")
    assert content(tmp_path / "m") == "new"


def test_lock_is_exclusive_between_threads_and_reentrant_in_one(tmp_path: Path) -> None:
    waits, refused = [], []

    def other() -> None:
        try:
            with exclusive(tmp_path / "m", lambda: waits.append(1), timeout_s=0):
                pass
        except Timeout:
            refused.append(1)

    with exclusive(tmp_path / "m"):
        with exclusive(tmp_path / "m"):
            pass
        assert names(tmp_path) == [".m.lock"]  # the inner one did not release it
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
    assert (waits, refused) == ([1], [1])
    other()
    assert (waits, refused) == ([1], [1]) and names(tmp_path) == []


def test_failed_second_rename_restores_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = make(tmp_path / "m", "old"), replace.rename

    def refuse(source: Path, target: Path) -> None:
        if target == folder and source.name == ".m.new":
            raise PermissionError(13, "Access is denied")
        rename(source, target)

    monkeypatch.setattr(replace, "rename", refuse)
    with pytest.raises(BundleError, match="The new m is complete"), new_folder(folder) as building:
        (building / "file").write_text("new", encoding="utf-8")
    assert content(folder) == "old" and names(tmp_path) == [".m.new", "m"]
    finish_replacement(folder)
    assert content(folder) == "old"  # still in use
    monkeypatch.undo()
    finish_replacement(folder)
    assert content(folder) == "new" and names(tmp_path) == ["m"]


@pytest.mark.parametrize("has_old", [False, True])
def test_each_rename_is_tried_again_on_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_old: bool) -> None:
    """A virus scanner has the files open for a moment."""
    folder, rename, tries = tmp_path / "m", Path.rename, Counter[str]()
    if has_old:
        make(folder, "old")

    def refuse_once(source: Path, target: Path) -> Path:
        tries[target.name] += 1
        if tries[target.name] == 1:
            raise PermissionError(13, "Access is denied")
        return rename(source, target)

    monkeypatch.setattr(replace, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr(replace, "_RENAME_S", 60.0)
    monkeypatch.setattr(Path, "rename", refuse_once)
    with new_folder(folder) as building:
        (building / "file").write_text("new", encoding="utf-8")
    assert content(folder) == "new"
    assert tries == {".m.new": 2, "m": 2} | ({".m.old": 2} if has_old else {})


@pytest.mark.parametrize("step", [finish_replacement, new_folder, fetched_folder])
def test_bundle_whose_name_begins_with_another_keeps_its_incomplete_folders(
    tmp_path: Path, step: Callable[[Path], AbstractContextManager[Path] | None]
) -> None:
    """Also while another program builds it."""
    (tmp_path / ".m.0123abcd.building").mkdir()
    other = tmp_path / "m.v2"
    with fetched_folder(other) as fetched, new_folder(other) as building, step(tmp_path / "m") or nullcontext():
        assert building.is_dir() and fetched.is_dir()
        assert not (tmp_path / ".m.0123abcd.building").exists()
