"""`npu-gateway stop`, and what `serve` says when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from gateway.commands.running.run_file import RunFile, run_folder, running_gateways
from gateway.commands.running.stop import stopping_line
from gateway.commands.serve import _listen
from gateway.config.tables import ServerConfig
from gateway.errors import GatewayError
from tests.commands.running.conftest import Command
from tests.support.processes import PATIENCE_S, SCRIPTED, environment, serving

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


def test_stop_lets_answers_finish_and_waits_for_the_end(tmp_path: Path, command: Command) -> None:
    text = f'[server]\nshutdown_grace_s = 3600\n{SCRIPTED}script = {{ replies = ["a b c d"], token_s = 0.3 }}\n'
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with serving("--port", 0, cwd=tmp_path) as running:
        running.read_greeting()
        [run] = running_gateways()
        with httpx.stream("POST", f"{run.url}/v1/completions", json=BODY, timeout=PATIENCE_S) as answer:
            lines = answer.iter_lines()
            next(lines)
            done: list[tuple[int, str, str]] = []
            thread = threading.Thread(target=lambda: done.append(command("stop")))
            thread.start()
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
            while not running_gateways():
                assert running.process.poll() is None
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
