"""`build_bundle`: the bundle appears complete or not at all, also after a fault."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from gateway.builder.build import Graphs, build_bundle
from gateway.builder.sources.source import ModelSource
from gateway.bundles.bundle import load_bundle
from gateway.bundles.stamp import BUNDLE_FORMAT, STAMP_FILE, read_stamp
from gateway.child import Progress
from gateway.errors import BundleError
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import write_tiny_gguf


def _ignore(what: str, share: float) -> None:
    """A `Progress` that shows nothing."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_folder(tmp_path / "source")


class _Failing:
    """A target that writes half of its graph and fails."""

    name = "cpu"

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def write(self, source: ModelSource, folder: Path, progress: Progress) -> Graphs:
        (folder / "model.onnx").write_bytes(b"half")
        raise self._error


@pytest.mark.parametrize("error", [BundleError("no"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_build_leaves_no_files(source: Path, tmp_path: Path, error: BaseException) -> None:
    with pytest.raises((BundleError, KeyboardInterrupt)):
        build_bundle(source, tmp_path / "out" / "bundle", progress=_ignore, target=_Failing(error))
    assert list((tmp_path / "out").iterdir()) == []


def test_full_disk_is_reported(source: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"bundle cannot be written: No space left on device. Free some space"):
        build_bundle(
            source, tmp_path / "bundle", progress=_ignore, target=_Failing(OSError(28, "No space left on device"))
        )


def test_changed_number_format_is_a_stage_of_the_build(tmp_path: Path) -> None:
    gguf, stages = write_tiny_gguf(tmp_path / "tiny.gguf", stored_as="Q5_0"), []
    build_bundle(gguf, tmp_path / "bundle", progress=lambda stage, _: stages.append(stage))
    assert stages.count("Q5_0 (5 bits) becomes 8-bit blocks with the same values") == 1


def test_failed_build_keeps_existing_bundle(source: Path, tmp_path: Path) -> None:
    out = build_bundle(source, tmp_path / "bundle", progress=_ignore)
    with pytest.raises(BundleError):
        build_bundle(source, out, progress=_ignore, target=_Failing(BundleError("no")))
    assert load_bundle(out).config.vocab_size == 384


def test_bundle_appears_only_when_complete(source: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out" / "bundle", []
    build_bundle(source, out, progress=lambda what, share: seen.append(out.exists()))
    assert seen and not any(seen)
    assert load_bundle(out)


def test_concurrent_builds_of_one_bundle_both_succeed(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "bundle"
    meet = threading.Barrier(2)

    def progress(what: str, share: float) -> None:
        if what == "reading the source" and share == 1.0:
            meet.wait(60)

    threads = [
        threading.Thread(target=build_bundle, args=(source, out), kwargs={"progress": progress}) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load_bundle(out).config.vocab_size == 384
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_temporary_folders_of_killed_builds_are_removed(source: Path, tmp_path: Path) -> None:
    killed, other = tmp_path / ".bundle.00000000.building", tmp_path / ".bundle2.00000000.building"
    for folder in (killed, other):
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"half")
    build_bundle(source, tmp_path / "bundle", progress=_ignore)
    assert not killed.exists()
    assert other.exists()


def test_foreign_folder_is_not_replaced(source: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(BundleError, match="photos exists and is not a bundle that was built here"):
        build_bundle(source, tmp_path / "photos", progress=_ignore)
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_stamp_has_format_target_and_source(source: Path, tmp_path: Path) -> None:
    out = build_bundle(source, tmp_path / "bundle", progress=_ignore)
    stamp = read_stamp(out)
    assert stamp is not None
    assert (stamp.format, stamp.target, stamp.source) == (BUNDLE_FORMAT, "cpu", "source")
    (out / STAMP_FILE).write_text("{}", encoding="utf-8")
    assert read_stamp(out) is None


def test_same_source_gives_identical_bytes(source: Path, tmp_path: Path) -> None:
    first, second = (build_bundle(source, tmp_path / name, progress=_ignore) for name in ("a", "b"))
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
