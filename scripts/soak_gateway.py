"""The gateway under soak.py: its process, its workers, what it holds, and a gateway of soak.py's own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.parse import urlsplit

import httpx
import psutil
from soak_traffic import REPLY_S

ROOT = Path(__file__).parents[1]
KILLED = "its worker died"
SETTLE_S = 60.0  # limit for the gateway to finish its requests and to start a killed worker again


def inventory(gateway: psutil.Process) -> tuple[int, int]:
    """Processes and open files of the gateway. The check of a bundle is left out: its time depends on the machine."""
    open_files = getattr(gateway, "num_handles" if sys.platform == "win32" else "num_fds")
    children = gateway.children(recursive=True)
    return 1 + len(children) - len(_running(children, "gateway.bundles.idle_check")), open_files()


def workers(gateway: psutil.Process) -> list[psutil.Process]:
    return _running(gateway.children(), "spawn_main")


def _running(processes: list[psutil.Process], what: str) -> list[psutil.Process]:
    """Those with `what` in their command line."""
    found = []
    for process in processes:
        with suppress(psutil.Error):
            if what in " ".join(process.cmdline()):
                found.append(process)
    return found


def listening(url: str) -> psutil.Process | None:
    """The process that listens at `url`, if it is on this machine and accessible."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            address: Any = connection.laddr or None
            listens = address is not None and connection.status == psutil.CONN_LISTEN
            if listens and address.port == urlsplit(url).port and connection.pid:
                return psutil.Process(connection.pid)
    return None


@contextmanager
def own_gateway(faults: list[str], *, kills: bool) -> Iterator[str]:
    """Start a gateway with the usual configuration and yield its URL.

    On a signal it must exit with code 0. Its log must have no line at ERROR, except for workers that soak.py kills.
    """
    with TemporaryFile("w+", encoding="utf-8", errors="replace") as log, _started(log) as process:
        assert process.stdout is not None
        url = next((found[1] for line in process.stdout if (found := re.search(r"(http://\S+:\d+)/v1", line))), None)
        if url is None:
            log.seek(0)
            raise SystemExit(f"soak: the gateway did not start (exit code {process.wait(SETTLE_S)}):\n{log.read()}")
        yield url
        process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        if code := process.wait(SETTLE_S):
            faults.append(f"the gateway ended with exit code {code}")
        log.seek(0)
        lines = [line.rstrip()[:200] for line in log if " ERROR " in line or "Traceback" in line]
        faults += [f"log: {line}" for line in lines if not (kills and KILLED in line)]


@contextmanager
def _started(log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=log,
        encoding="utf-8",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows: needed for Ctrl-Break
    )
    assert process.stdout is not None
    with closing(process.stdout):
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def ready_models(url: str) -> list[str]:
    until = time.monotonic() + REPLY_S
    while True:
        models = httpx.get(f"{url}/readyz", timeout=REPLY_S).json()["models"]
        if ready := [row["model"] for row in models if row["engine"]["state"] == "ready"]:
            return ready
        if time.monotonic() > until:
            raise SystemExit("soak: no model is ready")
        time.sleep(0.2)
