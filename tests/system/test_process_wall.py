"""The gateway process loads no native inference library, no tokenizer and no template engine: its children do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.support.processes import PATIENCE_S, environment, free_port, serving

#: Of workers, and of the process that prepares prompts.
NATIVE = ("onnxruntime", "onnxruntime_qnn", "llguidance", "onnx", "numpy", "tokenizers", "jinja2")
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}

#: What takes a tenth of a second or more of each start, and is installed with the gateway.
HEAVY = ("pydantic", "openai", "gguf", "huggingface_hub")
#: `npu-gateway serve` with a thread that sends two requests, prints the loaded modules, and those that were imported
#: while a loop ran in their thread, and stops the gateway. It uses no library that the gateway may import.
SERVE_AND_REPORT = """
import asyncio, json, signal, sys, threading, time, urllib.request
from gateway.cli import main

config, port, chat = sys.argv[1:]
url = f"http://127.0.0.1:{port}"
on_loop = []

class Finder:
    def find_spec(self, name, path=None, target=None):
        if asyncio._get_running_loop() is not None:
            on_loop.append(name)

def status(path, **body):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
        return answer.status

def request_and_report():
    try:
        while True:
            try:
                if status("/readyz") == 200:
                    break
            except OSError:
                pass
            time.sleep(0.05)
        found = [status("/v1/chat/completions", **json.loads(chat), stream=stream) for stream in (False, True)]
        print(json.dumps({"status": found, "modules": sorted(sys.modules), "on_loop": on_loop}), flush=True)
    finally:
        signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Finder())
threading.Thread(target=request_and_report, daemon=True).start()
sys.exit(main(["serve", "--config", config, "--port", port]))
"""


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f"[models.tiny]\npath = {json.dumps(str(tiny))}\n", encoding="utf-8")
    return path


def test_serve_imports_no_native_module_and_nothing_on_its_event_loop(config: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE_AND_REPORT, str(config), str(free_port()), json.dumps(CHAT)],
        cwd=config.parent,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=2 * PATIENCE_S,
    )
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert report["status"] == [200, 200], done.stderr
    assert [name for name in report["modules"] if name.split(".")[0] in (*NATIVE, *HEAVY)] == []
    assert [name for name in report["on_loop"] if name.split(".")[0] not in sys.stdlib_module_names] == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_gateway_process_maps_no_native_library(config: Path) -> None:
    port = free_port()
    with serving("--config", config, "--port", port, cwd=config.parent) as gateway:
        assert "ready on cpu" in gateway.read_greeting()
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        assert httpx.post(url, json=CHAT, timeout=PATIENCE_S).status_code == 200
        maps = Path(f"/proc/{gateway.process.pid}/maps").read_text(encoding="utf-8")
    folders = "|".join(NATIVE)
    assert "msgspec" in maps  # maps are readable: this native library belongs to the gateway process
    assert set(re.findall(rf"/(?:(?:{folders})/.*|libGenie.*)", maps)) == set()
