"""Attacks on the event loop: no request, model or pipe makes the gateway stop for everything else."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.processes import PATIENCE_S, SCRIPTED, Serving, serving

CHAT = {"model": "paris", "messages": [{"role": "user", "content": "x"}]}
STOPS = [signal.CTRL_BREAK_EVENT] if sys.platform == "win32" else [signal.SIGINT, signal.SIGTERM]
#: Its line in the log has 12,000 characters, because each of these is escaped.
LONG = {**CHAT, "messages": [{"role": "user", "content": "\u202e" * 2000}]}
MARK = b"~"  # what the full pipe contains


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text("[server]\nlog_prompts = true\n" + SCRIPTED, encoding="utf-8")
    return tmp_path


def base_url(running: Serving) -> str:
    return running.read_greeting().split(" on ")[1].split()[0].removesuffix("/v1")


# ---- no program reads the log ---------------------------------------------------------------------------------------


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """The read end and the write end of a pipe that has space for nothing more."""
    read_end, write_end = os.pipe()
    if sys.platform == "win32":
        os.write(write_end, MARK * 4096)  # the size of a pipe on Windows
    else:
        os.set_blocking(write_end, False)
        with suppress(BlockingIOError):
            while True:
                os.write(write_end, MARK)
        os.set_blocking(write_end, True)
    try:
        yield read_end, write_end
    finally:
        os.close(read_end)


@pytest.mark.parametrize("stop", STOPS)
def test_gateway_whose_log_is_not_read_answers_and_stops(folder: Path, stop: int) -> None:
    """20 lines of 12,000 characters: more than two pipes hold."""
    with full_pipe() as (_, write_end), serving("--port", 0, cwd=folder, stderr=write_end) as running:
        os.close(write_end)
        with httpx.Client(base_url=base_url(running), timeout=PATIENCE_S) as http:
            for _ in range(20):
                assert http.post("/v1/chat/completions", json=LONG).status_code == 200
            assert http.get("/healthz").status_code == 200
        assert running.stop(stop)[0] == 0


def test_number_of_lost_lines_is_logged_when_the_reader_is_back(folder: Path) -> None:
    """120 lines of 12,000 characters: more than the queue holds."""
    read: list[bytes] = []
    with full_pipe() as (read_end, write_end), serving("--port", 0, cwd=folder, stderr=write_end) as running:
        os.close(write_end)
        with httpx.Client(base_url=base_url(running), timeout=PATIENCE_S) as http:
            for _ in range(120):
                assert http.post("/v1/chat/completions", json=LONG).status_code == 200
        reader = threading.Thread(target=lambda: read.extend(iter(lambda: os.read(read_end, 2**16), b"")))
        reader.start()
        assert running.stop(STOPS[0])[0] == 0
        reader.join(PATIENCE_S)
    lines = b"".join(read).lstrip(MARK).decode().splitlines()
    [lost] = [int(found[1]) for line in lines if (found := re.search(r"WARNING (\d+) lines of output were lost", line))]
    assert lost > 0
    shown = [line for line in lines if re.search(r"chatcmpl-|  \.\.[0-9a-f]{8}$", line)]
    assert lost + len(shown) == 240  # two lines for each request


@pytest.mark.parametrize("closed", [1, 2])
def test_gateway_without_a_reader_of_its_output_answers_and_stops(folder: Path, closed: int) -> None:
    """The launcher has closed its end of the pipe: a write fails."""
    with serving("--port", 0, cwd=folder) as running:
        with httpx.Client(base_url=base_url(running), timeout=PATIENCE_S) as http:
            pipe = running.process.stdout if closed == 1 else running.process.stderr
            assert pipe is not None
            pipe.close()
            for _ in range(20):
                assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        running.process.send_signal(STOPS[0])
        assert running.process.wait(PATIENCE_S) == 0


def test_worker_whose_log_is_not_read_answers_and_stops(tmp_path: Path, tiny: Path) -> None:
    """The worker writes to its stderr while it runs: 1 MB, more than any pipe holds."""
    (tmp_path / "sitecustomize.py").write_text(NOISY, encoding="utf-8")
    (tmp_path / "config.toml").write_text(f"[models.tiny]\npath = '{tiny}'\nprovider = 'cpu'\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3])])
    with (
        full_pipe() as (_, write_end),
        serving("--port", 0, cwd=tmp_path, stderr=write_end, PYTHONPATH=path) as running,
    ):
        os.close(write_end)
        with httpx.Client(base_url=base_url(running), timeout=PATIENCE_S) as http:
            body = {"model": "tiny", "prompt": [40, 41], "max_tokens": 50, "ignore_eos": True}
            for _ in range(5):
                reply = http.post("/v1/completions", json=body)
                assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] == 50
        workers = psutil.Process(running.process.pid).children(recursive=True)
        assert running.stop(STOPS[0])[0] == 0
        assert psutil.wait_procs(workers, PATIENCE_S)[1] == []
    assert (tmp_path / "wrote").exists()


#: For each Python process of the test: if it is a worker, its first device call writes more than any pipe holds.
NOISY = """
import os, sys

if any("multiprocessing.spawn" in argument or "spawn_main" in argument for argument in sys.orig_argv):
    from gateway.worker import token_loop

    turn = token_loop.TokenLoop.turn

    def noisy_turn(self):
        for _ in range(16):
            os.write(2, b"n" * 65536)
        open("wrote", "w").close()
        return turn(self)

    token_loop.TokenLoop.turn = noisy_turn
"""


# ---- the log cannot be forged --------------------------------------------------------------------------------------


def test_prompt_in_the_log_is_one_line_without_escape_sequences(folder: Path) -> None:
    hostile = "hello\n12:00:00 ERROR   forged\r\x1b[2J\x1b]0;title\x07\x9b31m\u2028\u2029\u202e\x7f"
    with serving("--port", 0, cwd=folder) as running:
        with httpx.Client(base_url=base_url(running), timeout=PATIENCE_S) as http:
            for body in ({**CHAT, "messages": [{"role": "user", "content": hostile}]}, {**CHAT, "model": hostile}):
                http.post("/v1/chat/completions", json=body)
            http.post("/v1/completions", json={"model": "paris", "prompt": hostile})
            http.get("/v1/" + "%1b%5b2J%0a12:00:00 ERROR forged")
        code, errors = running.stop(STOPS[0])
    assert code == 0
    assert "forged" in errors and r"\x1b[2J" in errors
    assert all(line.isprintable() and not line.startswith("12:00:00") for line in errors.split("\n"))
    assert not [line for line in errors.split("\n") if " ERROR   forged" in line[:30]]
