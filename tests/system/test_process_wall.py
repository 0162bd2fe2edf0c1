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
#: `npu-gateway serve` with a thread that answers one request, prints the loaded modules and stops the gateway.
SERVE_AND_REPORT = """
import json, signal, sys, threading, time
import httpx
from gateway.cli import main

config, port, chat = sys.argv[1:]
url = f"http://127.0.0.1:{port}"

def request_and_report():
    try:
        while True:
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        answer = httpx.post(f"{url}/v1/chat/completions", json=json.loads(chat), timeout=60)
        print(json.dumps({"status": answer.status_code, "modules": sorted(sys.modules)}), flush=True)
    finally:
        signal.raise_signal(signal.SIGINT)

threading.Thread(target=request_and_report, daemon=True).start()
sys.exit(main(["serve", "--config", config, "--port", port]))
"""


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(f"[models.tiny]\npath = {json.dumps(str(tiny))}\n", encoding="utf-8")
    return path


def test_serve_imports_no_native_module(config: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE_AND_REPORT, str(config), str(free_port()), json.dumps(CHAT)],
        cwd=config.parent,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=2 * PATIENCE_S,
    )
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert report["status"] == 200, done.stderr
    assert [name for name in report["modules"] if name.split(".")[0] in (*NATIVE, *HEAVY)] == []


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
