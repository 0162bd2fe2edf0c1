"""`npu-gateway stop`, and what `serve` says when it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from gateway.commands.running.run_file import RunFile, run_folder, running_gateways
from gateway.commands.running.stop import stopping_line
from gateway.commands.serve import _listen
from gateway.config.tables import ServerConfig
from gateway.errors import GatewayError
from tests.commands.running.conftest import Command
from tests.support.processes import PATIENCE_S, SCRIPTED, Serving, environment, serving
from tests.support.server import wait_until

ENDLESS = f'{SCRIPTED}script = {{ replies = ["word"], repeat = true, token_s = 0.05 }}\n'
BODY = {"model": "paris", "prompt": "x", "max_tokens": 100_000, "stream": True}


@pytest.mark.parametrize(
    ("requests", "grace_s", "line"),
    [
        (0, 10.0, "Stopping"),
        (1, 0.0, "Stopping"),
        (1, 10.0, "Stopping: 1 answer has up to 10 s; Ctrl-C again stops now"),
        (2, 2.5, "Stopping: 2 answers have up to 2.5 s; Ctrl-C again stops now"),
    ],
)
def test_stopping_line(requests: int, grace_s: float, line: str) -> None:
    assert stopping_line(requests, grace_s) == line


@contextmanager
def held_upstream() -> Iterator[tuple[int, threading.Event]]:
    """A server whose answer ends when the event is set. Yields its port."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b'data: {"choices": [{"index": 0, "delta": {"content": "a"}}]}\n\n')
            self.wfile.flush()
            released.wait(PATIENCE_S)
            self.wfile.write(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n')
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield server.server_port, released
        finally:
            released.set()
            server.shutdown()


@contextmanager
def serving_upstream(folder: Path, port: int) -> Iterator[Serving]:
    """A gateway before that server. It waits an hour for its requests at the end."""
    model = f'[models.far]\nengine = "upstream"\nurl = "http://127.0.0.1:{port}/v1"\n'
    (folder / "config.toml").write_text(f"[server]\nshutdown_grace_s = 3600\n{model}", encoding="utf-8")
    with serving("--port", 0, cwd=folder) as running:
        yield running


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE_S).close()
    except OSError:
        return False
    return True


def test_stop_lets_answers_finish_and_waits_for_the_end(tmp_path: Path, command: Command) -> None:
    with held_upstream() as (port, released), serving_upstream(tmp_path, port) as running:
        running.read_greeting()
        [run] = running_gateways()
        body = {"model": "far", "messages": [{"role": "user", "content": "x"}], "stream": True}
        with httpx.stream("POST", f"{run.url}/v1/chat/completions", json=body, timeout=PATIENCE_S) as answer:
            lines = answer.iter_lines()
            next(lines)
            done: list[tuple[int, str, str]] = []
            thread = threading.Thread(target=lambda: done.append(command("stop")))
            thread.start()
            wait_until(lambda: not listens(run.port), "the gateway does not stop")
            released.set()
            frames = [line for line in lines if line]
            thread.join(PATIENCE_S)
        assert frames[-1] == "data: [DONE]" and not any('"error"' in frame for frame in frames)
        assert done == [(0, "Stopping: 1 answer has up to 3600 s; Ctrl-C stops it now\nstopped\n", "")]
        assert running.process.wait(PATIENCE_S) == 0
        assert running.process.stderr is not None
        log = running.process.stderr.read()
    assert "Stopping: 1 answer has up to 3600 s; Ctrl-C again stops now" in log and log.endswith("stopped\n")
    assert list(run_folder().iterdir()) == []
    code, _, errors = command("stop")
    assert code == 1 and errors.startswith("npu-gateway: No gateway of this user runs on this machine; start one with ")


if os.name == "posix":

    def test_interrupted_stop_ends_answers_at_once(tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_text(f"[server]\nshutdown_grace_s = 3600\n{ENDLESS}", encoding="utf-8")
        with serving("--port", 0, cwd=tmp_path) as running:
            running.read_greeting()
            [run] = running_gateways()
            with httpx.stream("POST", f"{run.url}/v1/completions", json=BODY, timeout=PATIENCE_S) as answer:
                lines = answer.iter_lines()
                next(lines)
                command = [sys.executable, "-m", "gateway", "stop"]
                with subprocess.Popen(
                    command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, encoding="utf-8"
                ) as stop:
                    assert stop.stdout is not None
                    assert "Ctrl-C stops it now" in stop.stdout.readline()
                    stop.send_signal(signal.SIGINT)
                    assert any('"error"' in line for line in lines)
                    assert stop.stdout.read() == "stopped\n"
                assert stop.returncode == 0
            assert running.process.wait(PATIENCE_S) == 0

    def test_interrupt_while_a_model_loads_prints_no_greeting(tmp_path: Path) -> None:
        text = SCRIPTED + "script = { load_s = 3600 }\n"
        (tmp_path / "config.toml").write_text(text, encoding="utf-8")
        with serving("--port", 0, cwd=tmp_path) as running:
            wait_until(lambda: bool(running_gateways()), "the gateway does not listen")
            [run] = running_gateways()
            assert httpx.get(f"{run.url}/readyz", timeout=PATIENCE_S).status_code == 503
            running.process.send_signal(signal.SIGINT)
            output, errors = running.process.communicate(timeout=PATIENCE_S)
        assert (running.process.returncode, output) == (0, "")
        assert "Stopping" in errors and "Traceback" not in errors and errors.endswith("stopped\n")


def test_gateway_without_run_file_cannot_be_stopped(found: RunFile, command: Command) -> None:
    code, _, errors = command("stop", "--url", "http://127.0.0.1:1")
    assert code == 1
    assert errors == f"npu-gateway: No gateway at http://127.0.0.1:1 runs on this machine; one runs at {found.url}.\n"


def test_port_in_use_names_the_gateway_and_the_way_out(found: RunFile) -> None:
    with pytest.raises(GatewayError) as refused:
        _listen(ServerConfig(port=found.port))
    assert refused.value.message.startswith(f"Port {found.port} is held by npu-gateway ")
    step = f"(pid {os.getpid()}). Next step: `npu-gateway stop`, or `npu-gateway serve --port {found.port + 1}`."
    assert refused.value.message.endswith(step)
