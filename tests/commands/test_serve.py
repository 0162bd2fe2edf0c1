"""`npu-gateway serve` as a process: what it prints, how it ends, what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from gateway.commands.options import base_url
from gateway.commands.serve import curl_line
from tests.support.processes import SCRIPTED, gateway, serving, wakeups

INTERRUPT = signal.CTRL_BREAK_EVENT if sys.platform == "win32" else signal.SIGINT
STOPS = [INTERRUPT] if sys.platform == "win32" else [INTERRUPT, signal.SIGTERM]


@pytest.mark.parametrize("stop", STOPS)
def test_it_says_where_what_and_how_to_try_it_and_a_signal_ends_it_well(folder: Path, stop: int) -> None:
    with serving("--port", 0, cwd=folder) as running:
        greeting = running.read_greeting()
        url = greeting.split(" on ")[1].split()[0]
        assert url.startswith("http://127.0.0.1:") and url.endswith("/v1")
        assert "paris  ready on simulated  context 4096  also as gpt-4o-mini" in greeting
        answer = subprocess.run(shlex.split(greeting.splitlines()[-1]), capture_output=True, check=True)
        assert "Paris" in json.loads(answer.stdout)["choices"][0]["message"]["content"]
        code, errors = running.stop(stop)
    assert code == 0
    assert "Traceback" not in errors


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not count them")
def test_while_nobody_asks_the_gateway_wakes_once_a_second_and_its_worker_never(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "config.toml").write_text(f"[models.tiny]\npath = '{tiny}'\nprovider = 'cpu'\n", encoding="utf-8")
    with serving("--port", 0, cwd=tmp_path) as running:
        url = running.read_greeting().split(" on ")[1].split()[0]
        asked = httpx.post(f"{url}/completions", json={"model": "tiny", "prompt": "Hi", "max_tokens": 2}, timeout=60)
        assert asked.status_code == 200
        time.sleep(1)  # until all of them sleep
        server = psutil.Process(running.process.pid)
        processes = [server, *server.children()]
        before, begun = [wakeups(process) for process in processes], time.monotonic()
        time.sleep(4)
        after, elapsed_s = [wakeups(process) for process in processes], time.monotonic() - begun
    ours, *workers = [(b - a) / elapsed_s for a, b in zip(before, after, strict=True)]
    assert len(workers) == 2 and max(workers) < 1  # the other one is multiprocessing's own
    assert 0 < ours < 3


def test_the_line_to_try_is_written_for_the_machines_shell() -> None:
    line = curl_line("http://h/v1", "m", True, "win32")
    assert line.startswith("curl.exe ") and "'" not in line and '\\"model\\": \\"m\\"' in line
    assert "-H 'Authorization: Bearer YOUR-KEY'" in curl_line("http://h/v1", "m", True, "linux")
    assert "Authorization" not in curl_line("http://h/v1", "m", False, "linux")


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
def test_the_url_is_one_that_this_machine_can_reach(host: str, url: str) -> None:
    assert base_url(host, 1) == url


def test_a_port_in_use_is_one_line(folder: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        done = gateway("serve", "--port", taken.getsockname()[1], cwd=folder)
    assert done.returncode == 1
    assert "cannot listen on 127.0.0.1:" in done.stderr and len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_other_machines_need_a_key_or_a_word(folder: Path) -> None:
    done = gateway("serve", "--host", "0.0.0.0", "--port", 0, cwd=folder)
    assert done.returncode == 2
    assert "'0.0.0.0' lets other machines in without a key" in done.stderr
    with serving("--host", "0.0.0.0", "--port", 0, "--insecure", cwd=folder) as running:
        assert "on http://127.0.0.1:" in running.read_greeting()
    with serving("--host", "0.0.0.0", "--port", 0, cwd=folder, NPU_GATEWAY_API_KEY="k") as running:
        greeting = running.read_greeting()
        assert "Bearer YOUR-KEY" in greeting
        url = greeting.split(" on ")[1].split()[0]
        assert httpx.get(f"{url}/models").status_code == 401
        assert httpx.get(f"{url}/models", headers={"Authorization": "Bearer k"}).status_code == 200


def test_a_misspelt_script_is_a_mistake_too(folder: Path) -> None:
    (folder / "config.toml").write_text(SCRIPTED + 'script = { repliez = ["x"] }\n', encoding="utf-8")
    done = gateway("serve", "--port", 0, cwd=folder)
    assert done.returncode == 2
    assert "repliez" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_misspelt_npu_option_is_a_mistake(folder: Path) -> None:
    text = SCRIPTED + '[models.a]\npath = "a"\nprovider_options = { htp_performance_mod = "burst" }\n'
    (folder / "config.toml").write_text(text, encoding="utf-8")
    done = gateway("serve", "--port", 0, cwd=folder)
    assert done.returncode == 2
    assert "config.toml: [models.a] provider_options" in done.stderr
    assert "did you mean 'htp_performance_mode'?" in done.stderr


def test_a_model_without_its_bundle_does_not_keep_the_others_from_serving(folder: Path) -> None:
    text = SCRIPTED + '[models.gone]\npath = "gone"\n'
    (folder / "config.toml").write_text(text, encoding="utf-8")
    with serving("--port", 0, cwd=folder) as running:
        greeting = running.read_greeting()
        assert "paris  ready" in greeting
        assert "gone  failed: " in greeting
        code, errors = running.stop(INTERRUPT)
    assert code == 0
    assert "npu-gateway: gone: There is no bundle" in errors


def test_nothing_to_serve_is_a_failure(folder: Path) -> None:
    (folder / "config.toml").write_text('[models.gone]\npath = "gone"\n', encoding="utf-8")
    done = gateway("serve", "--port", 0, cwd=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "npu-gateway: No model can be served."


def test_the_environment_names_the_config(tmp_path: Path, folder: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with serving(cwd=elsewhere, NPU_GATEWAY_CONFIG=str(folder / "config.toml"), NPU_GATEWAY_SERVER_PORT="0") as running:
        assert "paris  ready" in running.read_greeting()


@pytest.mark.parametrize("stop", STOPS)
def test_a_signal_to_the_whole_process_group_cuts_no_stream(tiny: Path, tmp_path: Path, stop: int) -> None:
    (tmp_path / "config.toml").write_text(f"[models.tiny]\npath = '{tiny}'\nthreads = 1\n", encoding="utf-8")
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

    def test_a_second_interrupt_does_not_wait(folder: Path) -> None:
        script = 'script = { replies = ["word"], repeat = true, token_s = 0.05 }\n'
        (folder / "config.toml").write_text(SCRIPTED + script, encoding="utf-8")
        with serving("--port", 0, cwd=folder) as running:
            url = running.read_greeting().split(" on ")[1].split()[0]
            body = {
                "model": "paris",
                "messages": [{"role": "user", "content": "x"}],
                "max_tokens": 2000,
                "stream": True,
            }
            with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=30) as answer:
                lines = answer.iter_lines()  # kept: when it goes, the client has hung up
                next(lines)
                running.process.send_signal(signal.SIGINT)
                with pytest.raises(subprocess.TimeoutExpired):
                    running.process.wait(1.0)
                running.process.send_signal(signal.SIGINT)
                assert any('"error"' in line for line in lines)
            assert running.process.wait(10.0) == 0
            assert running.process.stderr is not None
            assert "Traceback" not in running.process.stderr.read()
