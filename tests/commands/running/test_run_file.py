"""Run files: who writes them, who may read them, and when they are removed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from gateway.commands.running.run_file import RunFile, announced, run_folder, running_gateways
from gateway.config.file import UNLISTED


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's data folder."""
    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    return tmp_path / "data"


def run_file(port: int, **fields: object) -> RunFile:
    return msgspec.convert({"url": f"http://127.0.0.1:{port}", "host": "127.0.0.1", "port": port, **fields}, RunFile)


def write(run: RunFile) -> Path:
    run_folder().mkdir(parents=True, exist_ok=True)
    file = run_folder() / f"{run.port}.json"
    file.write_bytes(msgspec.json.encode(run))
    return file


def test_run_file_exists_while_announced() -> None:
    second, first = run_file(8401), run_file(8400)
    with announced(second), announced(first):
        assert running_gateways() == [first, second]
        assert first.token != second.token and len(first.token) >= 32
    assert running_gateways() == [] and list(run_folder().iterdir()) == []


def test_gateway_of_a_measurement_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(UNLISTED, "1")
    with announced(run_file(8400)):
        assert running_gateways() == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows protects the folder of a user by itself")
def test_run_file_is_readable_by_its_user_only(data: Path) -> None:
    with announced(run_file(8400)):
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (run_folder(), run_folder() / "8400.json")]
    assert modes == [0o700, 0o600]


def test_run_file_of_next_gateway_on_port_is_kept() -> None:
    with announced(run_file(8400)):
        other = run_file(8400)
        write(other)
    assert running_gateways() == [other]


@pytest.mark.parametrize("has_new_process", [False, True], ids=["dead", "another-process"])
def test_stale_run_file_is_removed_by_readers(has_new_process: bool) -> None:
    own = psutil.Process()
    if has_new_process:
        run = run_file(8400, pid=own.pid, created_at=own.create_time() - 60)
    else:
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            pass
        run = run_file(8400, pid=ended.pid)
    file = write(run)
    assert running_gateways() == [] and not file.exists()


@pytest.mark.parametrize("command", ["serve", "other"])
def test_gateway_is_found_after_the_clock_was_set(command: str) -> None:
    program = [sys.executable, "-c", "print(flush=True); input()", command]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # the system shows the command line only when the program has begun
        created_at = psutil.Process(process.pid).create_time()
        times = {"created_at": created_at - 3600, "since_boot_s": created_at - psutil.boot_time()}
        write(run_file(8400, pid=process.pid, **times))
        assert len(running_gateways()) == (command == "serve")
        process.communicate(b"\n")


@pytest.mark.skipif(os.name != "posix", reason="only POSIX keeps ended processes until their parent waits")
def test_ended_process_that_has_a_waiting_parent_counts_as_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    run = run_file(8400, pid=process.pid, created_at=psutil.Process(process.pid).create_time())
    write(run)
    assert running_gateways() == [run]
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert running_gateways() == []
    process.communicate()


def test_files_that_are_no_run_files_are_ignored_and_kept() -> None:
    write(run_file(1)).write_bytes(b'{"url": "http://127.0.0.1:1"}')
    write(run_file(2)).write_bytes(b"\xff")
    (run_folder() / "3.json").mkdir()
    assert running_gateways() == [] and len(list(run_folder().iterdir())) == 3


def test_data_folder_that_cannot_be_written_is_a_warning(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    data.write_text("a file", encoding="utf-8")
    with announced(run_file(8400)):
        assert running_gateways() == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "will not find this gateway without --url" in caplog.text and "8400.json" in caplog.text


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "http://192.0.2.7:8400"},  # a key or a prompt would go there
        {"url": "http://["},
        {"url": "http://127.0.0.1:8400\x1b[2J"},
        {"url": "file:///etc/passwd"},
        {"pid": -1},
        {"pid": 2**70},
        {"port": 0},
        {"log_file": "a\0b"},
        {"version": "x" * 65536},
    ],
    ids=str,
)
def test_run_file_that_no_gateway_wrote_is_not_trusted(fields: dict[str, object]) -> None:
    own = {"url": "http://127.0.0.1:8400", "host": "127.0.0.1", "port": 8400, "pid": os.getpid()}
    file = write(run_file(8400))
    file.write_bytes(msgspec.json.encode({**own, "created_at": psutil.Process().create_time(), **fields}))
    assert running_gateways() == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no os.getuid")
def test_run_file_of_another_user_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a data folder that several users can write."""
    file = write(run_file(8400))
    assert running_gateways()
    monkeypatch.setattr(os, "getuid", lambda: file.stat().st_uid + 1)
    assert running_gateways() == []
    monkeypatch.undo()
    file.rename(tmp_path / "other.json")
    file.symlink_to(tmp_path / "other.json")
    assert running_gateways() == []
