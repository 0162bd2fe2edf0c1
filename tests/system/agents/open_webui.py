"""Open WebUI as a user has it: installed from PyPI, started by `launch`, used in a browser.

`python scripts/open_webui.py` runs it. CI does not, because the packages have 7 GB.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from msgspec.structs import replace

from gateway.builder.fetch import ensure_bundle
from gateway.config.file import load_config
from gateway.config.tables import LocalModel
from gateway.monitoring import logs
from scripts.chromium import find as find_chromium
from tests.support.paths import ROOT
from tests.support.processes import environment, free_port
from tests.support.server import Running, config_of, serving
from tests.system.agents.agents import Exchange, errors, recorded

VENV = ROOT / ".venv-open-webui"
VERSION, PLAYWRIGHT = "0.12.4", "1.65.1"
MODEL = "smollm2-135m"
QUESTIONS = ("What is the capital of France?", "And of Germany?", "Write a long story about a robot.")
ANSWERS = ("Paris", "Berlin")
INSTALL_S, CHAT_S = 3600, 1200  # a slow network; a busy machine
START_S = 300
#: It asks no server on the internet, also not for a model of embeddings.
OFFLINE = {
    "ANONYMIZED_TELEMETRY": "false",
    "ENABLE_VERSION_UPDATE_CHECK": "false",
    "OFFLINE_MODE": "true",
    "RAG_EMBEDDING_ENGINE": "openai",
    "SCARF_NO_ANALYTICS": "true",
    "WEBUI_SECRET_KEY": "for this run",  # else it writes one into the current folder
}


def main() -> int:
    logs.setup()
    chromium = find_chromium()
    npm = shutil.which("npm")
    if chromium is None or npm is None or shutil.which("node") is None:
        sys.exit("Chromium, Node or npm is not installed.")
    programs = installed()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        _run(npm, "install", "--no-save", "--no-audit", "--no-fund", f"playwright-core@{PLAYWRIGHT}", cwd=home)
        with gateway() as server, recorded(server) as exchanges, started(server, programs, home) as url:
            seen = chat(url, chromium, home)
    checks = checked(seen, exchanges)
    for text, holds in checks.items():
        print("PASS" if holds else "FAIL", text)
    for error in errors(exchanges):
        print("    ", error)
    return 0 if all(checks.values()) else 1


def checked(seen: dict[str, Any], exchanges: list[Exchange]) -> dict[str, bool]:
    """What the page showed and what the gateway saw: a line for each check, and if it holds."""
    posts = [each for each in exchanges if each.method == "POST"]
    streams = [each.reply for each in posts if each.body.get("stream")]
    limits = [each.body.get("max_tokens") for each in posts]
    right = [answer in text for answer, text in zip(ANSWERS, seen["answers"], strict=True)]
    faults = errors(exchanges)
    return {
        f"the page lists {', '.join(seen['models'])}": MODEL in seen["models"],
        f"the page has chosen {seen['chosen']}": seen["chosen"] == MODEL,
        f"the answers are {seen['answers']}": all(right),
        f"the page showed {len(seen['pieces'])} states of the first, each longer than the last": grows(seen["pieces"]),
        f"the gateway sent it in {streams[0].count('data: ')} events": streams[0].count("data: ") > 2,
        "the third answer was stopped": ["[DONE]" in each for each in streams] == [True, True, False],
        f"the page refuses an image: {seen['refusal']}": bool(seen["refusal"]),
        f"the title of the chat is {seen['title']!r}": "New Chat" not in seen["title"],
        f"every request has a token limit: {limits}": all(limits),
        f"the gateway answered {len(exchanges)} requests, {len(faults)} with an error": not faults,
    }


def installed() -> Path:
    """The folder with the program `open-webui`, which is installed first if necessary."""
    programs = VENV / ("Scripts" if sys.platform == "win32" else "bin")
    if shutil.which("open-webui", path=programs) is None:
        print(f"Installing Open WebUI {VERSION} into {VENV}", flush=True)
        venv.create(VENV, with_pip=True)
        _run(str(programs / "python"), "-m", "pip", "install", "--quiet", f"open-webui=={VERSION}", cwd=ROOT)
    return programs


@contextmanager
def gateway() -> Iterator[Running]:
    """A gateway with the default model of config.toml."""
    config = load_config(ROOT / "config.toml", {})
    model = config.models[MODEL]
    assert isinstance(model, LocalModel)
    bundle = ensure_bundle(model, ROOT / config.models_dir, lambda what, share: None)
    with serving(config_of({MODEL: replace(model, path=str(bundle))})) as server:
        yield server


@contextmanager
def started(server: Running, programs: Path, home: Path) -> Iterator[str]:
    """Open WebUI as `launch` starts it, on a free port and with its data in `home`. Yields its address."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    variables = {**OFFLINE, "DATA_DIR": str(home / "data"), "HOME": str(home), "USERPROFILE": str(home)}
    variables |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "gateway", "launch", "open-webui", "--url", server.url, "--", "--port", str(port)]
    with (home / "open-webui.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, env=environment(**variables), stdout=log, stderr=log)
    try:
        _wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    with httpx.Client(trust_env=False, transport=httpx.HTTPTransport(retries=0)) as client:
        for _ in range(START_S):
            assert process.poll() is None, "Open WebUI ended"
            with suppress(httpx.TransportError), suppress(subprocess.TimeoutExpired):
                if client.get(f"{url}/health", timeout=5).is_success:
                    return
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
    raise AssertionError("Open WebUI did not start")


def chat(url: str, chromium: str, home: Path) -> dict[str, Any]:
    """Put the questions in the browser. Returns what open_webui.mjs prints."""
    driver = str(Path(__file__).with_suffix(".mjs"))
    command = ["node", driver, url, chromium, MODEL, *QUESTIONS]
    done = subprocess.run(command, cwd=home, stdout=subprocess.PIPE, encoding="utf-8", timeout=CHAT_S)
    assert done.returncode == 0, (home / "open-webui.log").read_text(encoding="utf-8", errors="replace")[-4000:]
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def grows(texts: list[str]) -> bool:
    return len(texts) > 2 and all(after.startswith(before) for before, after in pairwise(texts))


def _run(*command: str, cwd: Path) -> None:
    subprocess.run(command, cwd=cwd, check=True, timeout=INSTALL_S, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
