"""Start a server for a benchmark. If it ends before it is ready, show its error output."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO, Any, NoReturn

READY_S = 300  # to load a model on a busy machine
SHOWN = 4000  # characters of a server's error output
SERVER = """\
[server]
port = {port}
[breaker]
enabled = false
"""


class Running:
    """A child process and the file that collects its stderr."""

    def __init__(self, command: list[str], process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self._command = command
        self._errors = errors

    def wait_until_ready(self, port: int, path: str) -> None:
        """Wait until `path` answers 200. Raises SystemExit with the server's error output if that does not happen."""
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            if self.process.poll() is not None:
                self.fail(f"ended with exit code {self.process.returncode} before it was ready")
            with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", path)
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.05)
        self.fail(f"was not ready after {READY_S} s")

    def fail(self, what: str) -> NoReturn:
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()[-SHOWN:]
        raise SystemExit(f"{shlex.join(self._command)} {what}. Its error output:\n{text or '(nothing)'}")


@contextmanager
def running(command: list[str], **options: Any) -> Iterator[Running]:
    """Start `command`; terminate it at the end of the block."""
    with tempfile.TemporaryFile() as errors, subprocess.Popen(command, stderr=errors, **options) as process:
        try:
            yield Running(command, process, errors)
        finally:
            process.terminate()


@contextmanager
def running_gateway(models: str) -> Iterator[tuple[Running, int]]:
    """A gateway that is ready, and its port.

    Args:
        models: the tables of its models, as in config.toml.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.toml")
        config.write_text(SERVER.format(port=port) + models, encoding="utf-8")
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        with running(command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL) as server:
            server.wait_until_ready(port, "/readyz")
            yield server, port


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    return port
