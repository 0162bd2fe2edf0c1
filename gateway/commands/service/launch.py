"""How a service starts the gateway: program, arguments, folder. The same for systemd and for the Task Scheduler."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gateway.errors import GatewayError

#: The name of the unit and of the task.
NAME = "npu-gateway"
DESCRIPTION = "npu-gateway: an OpenAI-compatible API for local models"
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # only Windows has it
#: Runs a program of the system. Returns its exit code and its text.
Call = Callable[[Sequence[str]], tuple[int, str]]


class Launch(NamedTuple):
    """The command line of a service, and the folder that it starts in."""

    program: Path
    arguments: tuple[str, ...]
    folder: Path


class ServiceState(NamedTuple):
    """What the system knows of the service.

    Args:
        program: None: it is not installed.
        is_running: the system runs it now.
        failure: why it ended the last time; "": it did not fail.
    """

    program: Path | None = None
    is_running: bool = False
    failure: str = ""


def make_launch(config: Path | None) -> Launch:
    """Start this gateway with this configuration. Raises ConfigError if the configuration has a mistake.

    A clone's program is the one behind the link `.venv`, which stays the same after an upgrade.
    """
    from gateway.bundles.disk import data_folder
    from gateway.config.file import load_config
    from gateway.config.find import delivered_file, find_config

    load_config(config)
    file, base = find_config(config)
    named = () if file == delivered_file()[0] else ("--config", str(file.absolute()))
    base = base if base.is_dir() else data_folder()
    base.mkdir(parents=True, exist_ok=True)
    arguments = ("-P", "-m", "gateway", "serve", *named)
    return Launch(_program(), arguments, base.absolute())


def _program() -> Path:
    """Python; on Windows the one without a console window."""
    from gateway.config.find import own_program

    python = own_program(Path(sys.executable).name)
    return python.with_name("pythonw.exe") if sys.platform == "win32" else python


def _system_program(name: str) -> str:
    """Windows would look for a bare name in the current folder first, where anything can lie."""
    if sys.platform != "win32":
        return name
    from gateway.config.file import environment_with

    return str(Path(environment_with().get("SYSTEMROOT", r"C:\Windows"), "System32", f"{name}.exe"))


def call(command: Sequence[str]) -> tuple[int, str]:
    """Run a program of the system. Raises GatewayError if it is not there."""
    program = _system_program(command[0])
    try:
        done = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            creationflags=_NO_WINDOW,
        )
    except OSError as error:
        raise GatewayError(f"{program} cannot be started: {error.strerror or error}.") from error
    return done.returncode, done.stdout.decode(errors="replace").strip()
