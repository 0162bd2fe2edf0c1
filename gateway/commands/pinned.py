"""Keep a running gateway on the files that it was started with, also if a new version is installed meanwhile."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from gateway.config.file import set_search_path

_held: list[int] = []  # descriptors, open until the process ends


def pin() -> None:
    """For a gateway that runs in a clone's environment (scripts/environment.py); no effect in any other."""
    environment = Path(sys.prefix).resolve()
    if not (environment / "in-use").is_file():
        return
    _hold(environment / "in-use")
    if environment != Path(sys.prefix):  # started through the link, which can point to another environment later
        for index, path in enumerate(sys.path):
            if Path(path).is_relative_to(sys.prefix):
                sys.path[index] = str(environment / Path(path).relative_to(sys.prefix))
        sys.executable = str(environment / Path(sys.executable).relative_to(sys.prefix))
    set_search_path(Path(__file__).parents[2])


if sys.platform == "win32":

    def _hold(path: Path) -> None:
        """Windows itself keeps the files of a running program."""

else:

    def _hold(path: Path) -> None:
        """Hold the lock that says that a program uses the environment."""
        import fcntl
        import os

        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY)
            _held.append(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
