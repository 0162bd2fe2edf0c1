"""Output that never blocks: the queue, the number of lost lines, the text of child processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.monitoring import output
from gateway.monitoring.output import QueuedWriter, escape
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE_S, environment


@contextmanager
def pipe() -> Iterator[tuple[int, QueuedWriter]]:
    """The read end of a pipe, and a writer to it. Nothing reads the pipe but the test."""
    read_end, write_end = os.pipe()
    with open(write_end, "wb", buffering=0) as file, open(read_end, "rb", closefd=True):  # noqa: PTH123
        yield read_end, QueuedWriter(file)


def read_until(read_end: int, end: bytes) -> bytes:
    read = b""
    while not read.endswith(end):
        read += os.read(read_end, 2**16)
    return read


def test_writes_are_written_in_order() -> None:
    with pipe() as (read_end, writer):
        for number in range(1000):
            writer.write(b"%d\n" % number)
        assert writer.drain(PATIENCE_S)
        assert os.read(read_end, 2**16).split() == [b"%d" % number for number in range(1000)]


def test_lines_are_dropped_and_counted_while_no_program_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "MAX_WAITING", 50_000)
    lines = [b"%6d %s\n" % (number, b"x" * 992) for number in range(1000)]  # 1000 bytes each; a pipe holds 64 KiB
    with pipe() as (read_end, writer):
        for line in lines:
            writer.write(line)
        assert not writer.drain(0.0)
        read = read_until(read_end, b"no program read them\n")
        kept = read.splitlines()[:-1]
        lost = int(read.splitlines()[-1].split()[2])
        assert 50 <= len(kept) < 250 and len(kept) + lost == 1000
        writer.write(b"after\n")
        assert read_until(read_end, b"after\n") == b"after\n"


def test_writer_survives_reader_that_is_gone() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "wb", buffering=0) as file:  # noqa: PTH123
        writer = QueuedWriter(file)
        for _ in range(3):
            writer.write(b"x\n")
            assert writer.drain(PATIENCE_S)


def test_write_during_a_write_of_the_same_thread_does_not_deadlock() -> None:
    """As a signal handler does that logs while the interrupted code holds the lock."""
    with pipe() as (read_end, writer):

        def write_twice() -> None:
            with writer._changed:
                writer.write(b"inner\n")

        thread = threading.Thread(target=write_twice, daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert read_until(read_end, b"\n") == b"inner\n"


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain text, 東京, ü", "plain text, 東京, ü"),
        ("a\nb\r\x1b[2J\x07\x7f", r"a\nb\r\x1b[2J\x07\x7f"),
        ("\x85\x9b31m\u2028\u2029", r"\x85\x9b31m\u2028\u2029"),
        ("\u202e\u2066\u200e\ufeff\ud800", r"\u202e\u2066\u200e\ufeff\ud800"),
    ],
)
def test_escape_leaves_no_control_character(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def run(code: str) -> subprocess.CompletedProcess[bytes]:
    """Run code after `never_block` in a separate process."""
    start = "import os, subprocess, sys\nfrom gateway.monitoring.output import never_block\n"
    code = f"{start}never_block()\nnever_block()\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, timeout=PATIENCE_S
    )


def lines_of(output: bytes) -> list[str]:
    return output.decode().splitlines()


def test_replaced_streams_write_text_of_the_process_unchanged() -> None:
    done = run("print('out', 'ü')\nsys.stderr.write('err\\x1b[1m\\n')\nassert sys.stdout.fileno() == 1")
    assert (lines_of(done.stdout), lines_of(done.stderr)) == (["out ü"], ["err\x1b[1m"])


def test_exception_that_ends_the_process_is_written() -> None:
    done = run("raise KeyError('the reason')")
    assert done.returncode == 1
    assert lines_of(done.stderr)[0] == "Traceback (most recent call last):"
    assert lines_of(done.stderr)[-1] == "KeyError: 'the reason'"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_text_of_child_process_is_indented_and_escaped(stream: str) -> None:
    child = "import os; os.write({}, b'one\\r\\n12:00:00 ERROR two\\x1b[2J\\xff\\n')".format(
        {"stdout": 1}.get(stream, 2)
    )
    done = run(f"subprocess.run([sys.executable, '-c', {child!r}])")
    assert lines_of(getattr(done, stream)) == ["  one", r"  12:00:00 ERROR two\x1b[2J\xff"]


def test_end_does_not_wait_for_a_child_that_lives_longer() -> None:
    """As multiprocessing's resource tracker does."""
    child = "import os; os.write(1, b'last\\n'); os.write(2, b'x'); input()"  # until the parent is gone
    code = f"""
from gateway.monitoring import output
output.EXIT_S = 3600.0
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
child.stderr.read(1)
"""
    assert lines_of(run(code).stdout) == ["  last"]


def test_child_process_never_waits_for_a_reader(tmp_path: Path) -> None:
    child = "import os\nfor _ in range(100): os.write(2, b'x' * 65536)"
    code = f"subprocess.run([sys.executable, '-c', {child!r}])\nopen({str(tmp_path / 'done')!r}, 'w').close()"
    code = f"import subprocess, sys\nfrom gateway.monitoring.output import never_block\nnever_block()\n{code}"
    read_end, write_end = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment(), stderr=write_end)
    try:
        assert process.wait(PATIENCE_S) == 0
        assert (tmp_path / "done").exists()
    finally:
        process.kill()
        os.close(read_end)
        os.close(write_end)
