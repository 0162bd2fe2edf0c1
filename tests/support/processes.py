"""`python -m gateway ...` as a process, for tests of the command line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.support.paths import ROOT

PATIENCE_S = 120.0  # for one command, on a machine with other work
SCRIPTED = '[models.paris]\nengine = "scripted"\naliases = ["gpt-4o-mini"]\n'
#: Windows sends Ctrl-C to all processes of a console. A separate process group can get Ctrl-Break alone.
OWN_GROUP: dict[str, Any] = (
    {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if sys.platform == "win32" else {"start_new_session": True}
)


def environment(**variables: str) -> dict[str, str]:
    """The environment of the tests without gateway settings, plus `variables`. A gateway reports
    a blocked event loop, and writes no log file to the data folder of this user."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("NPU_GATEWAY_")}
    ours = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "PYTHONASYNCIODEBUG": "1"}
    return {**mine, **ours, "NPU_GATEWAY_LOG_FILE": "", **variables}


def gateway(
    *arguments: object, cwd: Path, stdin: str = "", variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        cwd=cwd,
        env=environment(**(variables or {})),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
    )


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
        return port


def wakeups(process: psutil.Process) -> int:
    """How often the threads of the process have gone to sleep until now. Only Linux counts this."""
    states = [path.read_text(encoding="utf-8") for path in Path(f"/proc/{process.pid}/task").glob("*/status")]
    return sum(int(state.split("\nvoluntary_ctxt_switches:")[1].split()[0]) for state in states)


class Serving:
    """A running `npu-gateway serve`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.output = ""

    def read_greeting(self) -> str:
        """Read stdout up to the request to try, or up to its end."""
        assert self.process.stdout is not None
        timer = threading.Timer(PATIENCE_S, self.process.kill)
        timer.start()
        for line in self.process.stdout:
            self.output += line
            if line.lstrip().startswith(("curl", "(irm")):
                break
        timer.cancel()
        return self.output

    def stop(self, signal_number: int) -> tuple[int, str]:
        """Send a signal and wait. Returns the exit code and all of stderr."""
        self.process.send_signal(signal_number)
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        assert "blocked the event loop" not in (errors or ""), errors
        return self.process.returncode, errors or ""


@contextmanager
def serving(
    *arguments: object,
    cwd: Path,
    stderr: int = subprocess.PIPE,
    program: Sequence[str] = ("-m", "gateway"),
    **variables: str,
) -> Iterator[Serving]:
    """`npu-gateway serve` as a process. `stderr`: a descriptor, or `subprocess.PIPE`, whose text `stop` returns.
    `program`: the interpreter's arguments, for a gateway with a changed constant."""
    with subprocess.Popen(
        [sys.executable, *program, "serve", *map(str, arguments)],
        cwd=cwd,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
        **OWN_GROUP,
    ) as process:
        try:
            yield Serving(process)
        finally:
            process.kill()  # no effect if it has ended
        if process.stderr is not None and not process.stderr.closed:
            assert "blocked the event loop" not in process.stderr.read()
