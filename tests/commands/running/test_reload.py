"""`npu-gateway reload`, and SIGHUP: with a terminal, without one, and after its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gateway.commands.running.run_file import RunFile, announced, running_gateways
from gateway.config.file import load_config
from gateway.lanes.reload import watcher
from gateway.pull.watch import ConfigSource
from tests.commands.running.conftest import Command
from tests.support.processes import PATIENCE_S, SCRIPTED, serving
from tests.support.server import serving as serving_here
from tests.support.server import wait_until


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(f"[server]\nport = 0\n{SCRIPTED}", encoding="utf-8")
    return file


@pytest.fixture
def run(file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFile]:
    """A gateway of this process with that file. It does not look for new tables by itself."""
    monkeypatch.setattr(watcher, "_INTERVAL_S", 3600.0)
    config = load_config(file)
    with serving_here(config, source=ConfigSource(file, {}, config), stop_token="t-1") as running:
        found = RunFile(url=running.url, host="127.0.0.1", port=running.port, token="t-1")
        with announced(found):
            yield found


def test_command_prints_what_changed(run: RunFile, file: Path, command: Command) -> None:
    assert command("reload") == (0, "nothing has changed\n", "")
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("0\n", "1\nping_s = 3\n", 1) + '[models."a b"]\nengine = "scripted"\n', "utf-8")
    assert command("reload", "--port", run.port) == (
        0,
        "added: a b\napplied: server.ping_s\nneeds a restart: server.port\n",
        "",
    )
    file.write_text(f'[server]\nport = 0\n{SCRIPTED}script = {{ replies = ["new"] }}\n', encoding="utf-8")
    lines = "removed: a b\nloaded again: paris (script)\napplied: server.ping_s\n"
    assert command("reload", "--config", file) == (0, lines, "")


@pytest.mark.parametrize("named", [(), ("--config", "config.toml")])
def test_mistake_is_the_message_and_exit_code_1(run: RunFile, file: Path, command: Command, named: tuple[str]) -> None:
    file.write_text(SCRIPTED + "quue = 1\n", encoding="utf-8")
    code, output, errors = command("reload", *named)
    assert (code, output) == (1, "") and "[models.paris] quue: unknown key; did you mean 'queue'?" in errors
    assert len(errors.splitlines()) == 1


def test_command_without_a_gateway(command: Command) -> None:
    code, _, errors = command("reload")
    assert code == 1 and errors.startswith("npu-gateway: No gateway of this user runs on this machine")


def models_of(url: str) -> list[str]:
    return [card["id"] for card in httpx.get(f"{url}/v1/models", timeout=PATIENCE_S).json()["data"]]


def test_gateway_process_reloads_by_command_and_by_signal(tmp_path: Path, command: Command) -> None:
    """A stream in progress goes on."""
    endless = 'engine = "scripted"\nscript = { replies = ["word"], repeat = true, token_s = 0.01 }\n'
    file = tmp_path / "config.toml"
    rome = '[models.rome]\nengine = "scripted"\n'
    file.write_text(f"[models.paris]\n{endless}{rome}", encoding="utf-8")
    with serving("--port", 0, cwd=tmp_path) as running:
        running.read_greeting()
        [run] = running_gateways()
        body = {"model": "paris", "prompt": "x", "max_tokens": 200_000, "stream": True}
        with httpx.stream("POST", f"{run.url}/v1/completions", json=body, timeout=PATIENCE_S) as answer:
            lines = answer.iter_lines()
            next(lines)
            file.write_text(f"{rome}aliases = ['r']\n", encoding="utf-8")
            assert command("reload") == (0, "removed: paris\napplied: models.rome.aliases\n", "")
            assert models_of(run.url) == ["rome", "r"]
            if sys.platform != "win32":  # it has no terminal, as a service
                file.write_text(rome, encoding="utf-8")
                running.process.send_signal(signal.SIGHUP)
                wait_until(lambda: models_of(run.url) == ["rome"], "the signal reloads nothing")
                file.write_text("[models", encoding="utf-8")
                running.process.send_signal(signal.SIGHUP)
                log = f"{run.url}/gateway/log"
                wait_until(lambda: "is not applied" in httpx.get(log, timeout=PATIENCE_S).text, "no line in the log")
            answered = [next(lines) for _ in range(100)]
            assert not any('"error"' in line for line in answered)
        assert models_of(run.url)[0] == "rome"
        code, errors = running.stop(signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT)
    assert code == 0 and "Traceback" not in errors
    assert "the configuration was read again; removed: paris; applied: models.rome.aliases" in errors


if os.name == "posix":

    def test_signal_reloads_while_the_terminal_is_open_and_ends_the_gateway_when_it_is_closed(tmp_path: Path) -> None:
        from tests.support.pseudo_terminal import pseudo_terminal

        file = tmp_path / "config.toml"
        file.write_text(SCRIPTED, encoding="utf-8")
        with pseudo_terminal("serve", "--port", 0, cwd=tmp_path) as terminal:
            terminal.read_until("curl")
            [run] = running_gateways()
            file.write_text('[models.rome]\nengine = "scripted"\n', encoding="utf-8")
            terminal.process.send_signal(signal.SIGHUP)
            wait_until(lambda: models_of(run.url) == ["rome"], "the signal reloads nothing")
            terminal.close()
            assert terminal.process.wait(PATIENCE_S) == 0
