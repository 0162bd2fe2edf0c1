"""`require_space` and `require_writable` name the folder, the sizes and the next step."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.bundles import disk
from gateway.bundles.disk import folder_bytes, megabytes, require_space, require_writable, write_error
from gateway.errors import BundleError

GB = 1_000_000_000


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every volume has 10 GB free."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=10 * GB))


def test_enough_space_makes_the_folders(tmp_path: Path, free: None) -> None:
    require_space({tmp_path / "a" / "b": 9 * GB}, "The bundle")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_folders_on_one_volume_share_its_space(tmp_path: Path, free: None) -> None:
    needs = {tmp_path / "target": 6 * GB, tmp_path / "temporary": 6 * GB}
    with pytest.raises(BundleError) as caught:
        require_space(needs, "The bundle")
    assert caught.value.message == (
        f"The bundle needs about 12.1 GB in {tmp_path / 'temporary'}, and 10.0 GB are free. Free some space, or use a "
        "folder on another volume."
    )


def test_file_instead_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        BundleError, match=r"file/inner cannot be written: .*\. Make it writable, or use another folder\."
    ):
        require_writable(tmp_path / "file" / "inner")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_has_its_own_advice(code: int) -> None:
    assert "Free some space there" in write_error(Path("m"), OSError(code, "full")).message


@pytest.mark.parametrize(("size", "text"), [(0, "0 MB"), (1_600_000, "2 MB"), (999_000_000, "999 MB"), (GB, "1.0 GB")])
def test_sizes_are_short(size: int, text: str) -> None:
    assert megabytes(size) == text


def test_file_that_another_program_removes_meanwhile_has_no_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`npu-gateway list` while the gateway builds a bundle."""
    for name in ("here", "gone"):
        (tmp_path / name).write_bytes(b"1234")
    walk = os.walk

    def walk_and_remove(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for found in walk(folder):
            (tmp_path / "gone").unlink()
            yield found

    monkeypatch.setattr(disk.os, "walk", walk_and_remove)
    assert folder_bytes(tmp_path) == 4
