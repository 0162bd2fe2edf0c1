"""`npu-gateway serve` as a process: output, end, refusals."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, nullcontext, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from gateway.bundles.disk import data_folder
from gateway.cli import make_parser
from gateway.commands import serve as serve_command
from gateway.commands.models import prepare
from gateway.commands.options import base_url
from gateway.commands.running.run_file import run_folder, running_gateways
from gateway.config.tables import LocalModel, LogConfig
from gateway.engines import head_start
from gateway.errors import ConfigError, GatewayError
from gateway.monitoring import output
from gateway.monitoring.usage.store import UsageStore
from gateway.state.sqlite import FILE, SqliteDatabase
from tests.support.processes import PATIENCE_S, SCRIPTED, gateway, serving, wakeups

INTERRUPT = signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT
STOPS = [INTERRUPT] if sys.platform == "win32" else [INTERRUPT, signal.SIGTERM]


def test_serve_prints_url_models_and_request_and_stops_on_signal(folder: Path) -> None:
    answered = answers_in_the_usage_history()
    with serving("--port", 0, cwd=folder) as running:
        greeting = running.read_greeting()
        url = greeting.split(" on ")[1].split()[0]
        assert url.startswith("http://127.0.0.1:") and url.endswith("/v1")
        assert "paris  ready on simulated  context 4096  also as gpt-4o-mini" in greeting
        assert "    an answer is slow above 1 s + 20 ms a prompt token + 200 ms a token\n" in greeting
        assert "    defaults: max_tokens 64" in greeting
        assert f"Open {url.removesuffix('v1')} in a browser, or try:" in greeting
        assert 'npu-gateway chat "What is the capital of France?"' in greeting
        assert "Answers end after 64 tokens unless the client sets max_tokens" in greeting
        [run] = [run for run in running_gateways() if run.pid == running.process.pid]
        assert (f"{run.url}/v1", run.config_file, run.python) == (url, str(folder / "config.toml"), sys.executable)
        answer = subprocess.run(shlex.split(greeting.splitlines()[-1]), capture_output=True, check=True)
        assert "Paris" in json.loads(answer.stdout)["choices"][0]["message"]["content"]
        code, errors = running.stop(INTERRUPT)
    assert code == 0
    assert "Traceback" not in errors
    assert not (run_folder() / f"{run.port}.json").exists()
    assert answers_in_the_usage_history() == answered + 1  # the end of the gateway does not lose the last ones


def answers_in_the_usage_history() -> int:
    """Of all gateways that this process of the tests has started."""
    return sum(counts["answered"] for counts in UsageStore(SqliteDatabase(data_folder() / FILE), 30).rows(0).values())


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not count wakeups")
def test_idle_gateway_wakes_once_a_second_and_its_worker_never(tmp_path: Path, tiny: Path) -> None:
    """The processes need some time to become idle, so the test repeats the measurement until it shows that."""
    (tmp_path / "config.toml").write_text(f"[models.tiny]\npath = '{tiny}'\nprovider = 'cpu'\n", encoding="utf-8")
    with serving("--port", 0, cwd=tmp_path) as running:
        url = running.read_greeting().split(" on ")[1].split()[0]
        reply = httpx.post(f"{url}/completions", json={"model": "tiny", "prompt": "Hi", "max_tokens": 2}, timeout=60)
        assert reply.status_code == 200
        gateway_process = psutil.Process(running.process.pid)
        deadline = time.monotonic() + 60
        # The worker, the prompt process, the resource tracker of multiprocessing. The check of hashes ends soon.
        while len(workers := gateway_process.children()) != 3:
            assert time.monotonic() < deadline, workers
            time.sleep(0.1)
        rates = [math.inf]
        while not (0 < rates[0] < 3 and max(rates[1:]) == 0):
            assert time.monotonic() < deadline, f"wakeups per second: {rates}"
            rates = wakeup_rates([gateway_process, *workers])


def wakeup_rates(processes: list[psutil.Process]) -> list[float]:
    """Wakeups per second of each process in the next seconds."""
    before, started = [wakeups(process) for process in processes], time.monotonic()
    time.sleep(2)
    after, elapsed_s = [wakeups(process) for process in processes], time.monotonic() - started
    return [(b - a) / elapsed_s for a, b in zip(before, after, strict=True)]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("[::1]", "http://[::1]:1"),
        ("box.local", "http://box.local:1"),
    ],
)
def test_base_url_is_reachable_from_this_machine(host: str, url: str) -> None:
    assert base_url(host, 1) == url


def test_serve_with_port_in_use_prints_one_line(folder: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = gateway("serve", "--port", port, cwd=folder)
    assert done.returncode == 1
    holder = f"npu-gateway: Port {port} is held by {psutil.Process().name()} (pid {os.getpid()}). Next step: end that"
    assert done.stderr.startswith(holder) and len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_no_worker_starts_for_a_port_in_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[object] = []
    monkeypatch.setattr(head_start, "head_start", lambda found, *_: nullcontext(begun.append(found)))
    monkeypatch.setattr(prepare, "first_ready", lambda *_: ("m", LocalModel()))
    monkeypatch.setattr(output, "never_block", lambda: None)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        arguments = ["serve", "--port", str(taken.getsockname()[1]), "--config", str(folder / "config.toml")]
        with pytest.raises(GatewayError, match="is held by"):
            serve_command.run(make_parser().parse_args(arguments))
    assert begun == [None]


def test_serve_beyond_loopback_needs_key_or_insecure(folder: Path) -> None:
    done = gateway("serve", "--host", "0.0.0.0", "--port", 0, cwd=folder)
    assert done.returncode == 2
    assert "'0.0.0.0' lets other machines connect without a key" in done.stderr
    with serving("--host", "0.0.0.0", "--port", 0, "--insecure", cwd=folder) as running:
        assert "on http://127.0.0.1:" in running.read_greeting()
    with serving("--host", "0.0.0.0", "--port", 0, cwd=folder, NPU_GATEWAY_API_KEY="k") as running:
        greeting = running.read_greeting()
        assert "Bearer YOUR-KEY" in greeting
        url = greeting.split(" on ")[1].split()[0]
        assert httpx.get(f"{url}/models").status_code == 401
        assert httpx.get(f"{url}/models", headers={"Authorization": "Bearer k"}).status_code == 200


def test_serve_with_misspelt_script_key_exits_2(folder: Path) -> None:
    (folder / "config.toml").write_text(SCRIPTED + 'script = { repliez = ["x"] }\n', encoding="utf-8")
    done = gateway("serve", "--port", 0, cwd=folder)
    assert done.returncode == 2
    assert "repliez" in done.stderr and len(done.stderr.splitlines()) == 1


def test_serve_with_misspelt_npu_option_exits_2(folder: Path) -> None:
    text = SCRIPTED + '[models.a]\npath = "a"\nprovider_options = { htp_performance_mod = "burst" }\n'
    (folder / "config.toml").write_text(text, encoding="utf-8")
    done = gateway("serve", "--port", 0, cwd=folder)
    assert done.returncode == 2
    assert "config.toml: [models.a] provider_options" in done.stderr
    assert "did you mean 'htp_performance_mode'?" in done.stderr


def test_serve_with_missing_bundle_serves_other_models(folder: Path) -> None:
    text = SCRIPTED + '[models.gone]\npath = "gone"\n'
    (folder / "config.toml").write_text(text, encoding="utf-8")
    with serving("--port", 0, cwd=folder) as running:
        greeting = running.read_greeting()
        assert "paris  ready" in greeting
        assert "gone  failed: " in greeting
        code, errors = running.stop(INTERRUPT)
    assert code == 0
    assert "npu-gateway: gone: There is no bundle" in errors


def test_serve_with_a_configuration_as_its_model_names_the_option() -> None:
    arguments = make_parser().parse_args(["serve", "own.toml"])
    with pytest.raises(ConfigError, match=r"'own\.toml' is a configuration: write `npu-gateway serve --config FILE`"):
        arguments.run(arguments)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_hangup_before_the_gateway_runs_has_no_effect(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGHUP)

    def build(*_: object) -> int:
        assert signal.getsignal(signal.SIGHUP) != before  # else the next line ends the test run
        signal.raise_signal(signal.SIGHUP)
        return 7

    monkeypatch.setattr(serve_command, "_serve", build)
    monkeypatch.setattr("gateway.server.signals.hangup.SETTLE_S", 0.0)
    arguments = make_parser().parse_args(["serve", "--config", str(folder / "config.toml")])
    assert arguments.run(arguments) == 7
    assert "SIGHUP has no effect: send it again when it runs" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGHUP) == before


def test_serve_without_any_bundle_exits_1(folder: Path) -> None:
    (folder / "config.toml").write_text('[models.gone]\npath = "gone"\n', encoding="utf-8")
    done = gateway("serve", "--port", 0, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "npu-gateway: No model can be served."


def test_serve_reads_config_named_by_environment(tmp_path: Path, folder: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with serving(cwd=elsewhere, NPU_GATEWAY_CONFIG=str(folder / "config.toml"), NPU_GATEWAY_SERVER_PORT="0") as running:
        assert "paris  ready" in running.read_greeting()


@pytest.mark.parametrize("stop", STOPS)
def test_signal_to_process_group_lets_stream_finish(tiny: Path, tmp_path: Path, stop: int) -> None:
    text = f"[server]\nshutdown_grace_s = 3600\n[models.tiny]\npath = '{tiny}'\nthreads = 1\n"
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with serving("--port", 0, cwd=tmp_path) as running:
        url = running.read_greeting().split(" on ")[1].split()[0]
        body = {"prompt": [40, 41], "ignore_eos": True, "temperature": 0, "max_tokens": 500, "stream": True}
        with httpx.stream("POST", f"{url}/completions", json={"model": "tiny", **body}, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            if sys.platform == "win32":
                running.process.send_signal(stop)  # Ctrl-Break always goes to the group
            else:
                os.killpg(running.process.pid, stop)
            frames = [line for line in lines if line]
        assert frames[-1] == "data: [DONE]" and len(frames) > 50
        assert not any('"error"' in frame for frame in frames)
        _, errors = running.process.communicate(timeout=60)
    assert running.process.returncode == 0
    assert "Traceback" not in errors and "its worker died" not in errors


if os.name == "posix":

    def test_second_interrupt_ends_streams_without_grace_period(folder: Path) -> None:
        script = 'script = { replies = ["word"], repeat = true, token_s = 0.05 }\n'
        text = f"[server]\nshutdown_grace_s = 3600\n{SCRIPTED}{script}"
        (folder / "config.toml").write_text(text, encoding="utf-8")
        with serving("--port", 0, cwd=folder) as running:
            url = running.read_greeting().split(" on ")[1].split()[0]
            message = {"role": "user", "content": "x"}
            body = {"model": "paris", "messages": [message], "max_tokens": 100_000, "stream": True}
            with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=60) as answer:
                lines = answer.iter_lines()  # one iterator for all: httpx closes the response when it is collected
                next(lines)
                running.process.send_signal(signal.SIGINT)
                wait_until_refused(url)
                assert next(lines) is not None and running.process.poll() is None
                running.process.send_signal(signal.SIGINT)
                assert any('"error"' in line for line in lines)
            assert running.process.wait(60) == 0
            assert running.process.stderr is not None
            assert "Traceback" not in running.process.stderr.read()


def wait_until_refused(url: str) -> None:
    """Wait until the server at `url` accepts no connections. The system resets those that it has not accepted."""
    deadline = time.monotonic() + 60
    with suppress(httpx.NetworkError, httpx.RemoteProtocolError):
        while time.monotonic() < deadline:
            httpx.get(f"{url}/models", timeout=60)
            time.sleep(0.05)
        raise AssertionError("the server still accepts connections")


@pytest.mark.parametrize(
    ("file", "is_terminal", "written"),
    [("auto", True, False), ("auto", False, True), ("auto", None, True), ("", False, False), ("mine.log", True, True)],
)
def test_log_file_is_written_unless_a_person_sees_stderr(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, is_terminal: bool | None, written: bool
) -> None:
    """`is_terminal` None: a process without a console."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    stderr = None if is_terminal is None else io.StringIO()
    if stderr is not None:
        stderr.isatty = lambda: bool(is_terminal)  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stderr)
    name = str(tmp_path / file) if file.endswith(".log") else file
    opened = serve_command._log_file(LogConfig(file=name))
    try:
        expected = data_folder() / "logs" / "gateway.log" if file == "auto" else Path(name)
        assert (opened.path if opened else None) == (expected if written else None)
    finally:
        if opened:
            opened.close(PATIENCE_S)
