"""The log file: bounded size, rotation next to a reader, a disk that takes nothing, two gateways."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.monitoring.log_file import LogFile, RotatedFile
from tests.support.log_lines import log_lines
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

LINES = [b"line %04d of the log\n" % number for number in range(1000)]  # 21 bytes each


def notice(lost: int) -> bytes:
    return b"%d lines lost\n" % lost


@contextmanager
def log_file(path: Path, max_bytes: int = 10**6, files: int = 3) -> Iterator[LogFile]:
    opened = LogFile(path, max_bytes, files, notice)
    yield opened
    opened.close(PATIENCE_S)


def refuse_rename(self: Path, target: Path) -> Path:
    """As Windows does while another program has the file open."""
    raise PermissionError(13, "The process cannot access the file")


@pytest.fixture(params=["renamed", "copied"])
def rotation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "copied":
        monkeypatch.setattr(Path, "replace", refuse_rename)
    return str(request.param)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_files_are_bounded_and_have_the_newest_lines(tmp_path: Path, rotation: str, batch: int) -> None:
    path = tmp_path / "logs" / "gateway.log"
    with RotatedFile(path, 1000, 3) as file:
        for start in range(0, len(LINES), batch):
            rest = memoryview(b"".join(LINES[start : start + batch]))
            while rest:
                rest = rest[file.write(rest) :]
    files = sorted(path.parent.iterdir(), key=lambda each: each.name, reverse=True)
    names = (
        ["gateway.log", "gateway.2.log", "gateway.1.log"] if rotation == "renamed" else ["gateway.log", "gateway.1.log"]
    )
    assert [each.name for each in files] == names
    assert all(each.stat().st_size <= 1000 for each in files)
    assert sys.platform == "win32" or {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    oldest_first = sorted(files, key=lambda each: each.read_bytes())
    kept = b"".join(each.read_bytes() for each in oldest_first)
    assert kept == b"".join(LINES[-kept.count(b"\n") :]) and kept.count(b"\n") > 40


def test_reader_of_the_file_sees_it_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", refuse_rename)
    path = tmp_path / "gateway.log"
    with RotatedFile(path, 100, 2) as file, path.open("ab+") as reader:
        for line in LINES[:4]:
            file.write(line)
        reader.seek(0)
        assert reader.read() == b"".join(LINES[:4])
        file.write(LINES[4])
        reader.seek(0)
        assert reader.read() == LINES[4]


def test_one_file_alone_starts_again(tmp_path: Path) -> None:
    with RotatedFile(tmp_path / "gateway.log", 50, 1) as file:
        for line in LINES[:5]:
            file.write(line)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [LINES[4]]


def test_folder_that_cannot_be_written_is_one_warning_and_a_count(tmp_path: Path) -> None:
    (tmp_path / "logs").write_bytes(b"a file, not a folder")
    with log_lines() as lines, log_file(tmp_path / "logs" / "gateway.log") as log:
        for line in LINES[:3]:
            log.write(line)
            assert log.drain(PATIENCE_S)
        assert len(lines) == 1 and "gateway.log cannot be written: " in lines[0]
        (tmp_path / "logs").unlink()
        log.write(LINES[3])
        assert log.drain(PATIENCE_S)
    assert (tmp_path / "logs" / "gateway.log").read_bytes() == LINES[3] + b"3 lines lost\n"


class HalfFull(io.FileIO):
    """On a disk that has 10 bytes left."""

    def write(self, data: ReadableBuffer) -> int:
        if os.fstat(self.fileno()).st_size >= 10:
            raise OSError(28, "No space left on device")
        return super().write(bytes(data)[:10])


def test_line_after_a_full_disk_is_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "gateway.log"
    with RotatedFile(path, 10**6, 2) as file:
        assert file.write(LINES[0]) == 21
        with monkeypatch.context() as full, pytest.raises(OSError, match="No space"):
            full.setattr("gateway.monitoring.log_file.io.FileIO", HalfFull)
            path.rename(tmp_path / "moved.log")  # so that the file is opened again
            assert file.write(LINES[1]) == 10
            file.write(LINES[1][10:])
        file.write(LINES[2])
    assert path.read_bytes() == LINES[1][:10] + b"\n" + LINES[2]


def test_file_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log"
    with RotatedFile(path, 10**6, 2) as file:
        file.write(LINES[0])
        path.unlink()
        file.write(LINES[1])
    assert path.read_bytes() == LINES[1]


def test_second_gateway_writes_to_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "gateway.log"
    with log_file(path) as one, log_file(path) as other:
        assert (one.path, other.path) == (path, tmp_path / "gateway-2.log")
        other.write(b"x\n")
    assert other.path.read_bytes() == b"x\n"
    with log_file(path) as third:
        assert third.path == path
