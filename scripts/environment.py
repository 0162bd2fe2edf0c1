"""Make the virtual environment for the repository's commands. Standard library only, because nothing is installed yet.

    .venv/            in the folder of config.toml
    .venv/ready       written last: a digest of the installed packages, so that the next start installs nothing
    .venv.lock        a lock, so that two starts at the same time make the environment once

After an interruption there is no `ready` file, and the next start begins again. Every package is a wheel with a hash
from the lock file: no compiler is needed, and pip refuses any other file.
"""

import sys
import sysconfig

# This check comes before any import or syntax that an older Python does not know.
if sys.version_info < ((3, 12) if sysconfig.get_platform() == "win-arm64" else (3, 11)):
    found = "%d.%d" % sys.version_info[:2]
    needed = "Python 3.11 or newer, on Windows ARM 3.12 or newer"  # there, not every package has a wheel for 3.11
    sys.exit("npu-gateway needs %s; %s is Python %s." % (needed, sys.executable, found))

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NoReturn

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

ROOT = Path(__file__).resolve().parent.parent
Kind = Literal["serve", "test"]
LOCKS: dict[Kind, str] = {"serve": "requirements.lock", "test": "requirements-test.lock"}


def ensure(kind: Kind, venv: Path = ROOT / ".venv") -> Path:
    """Install into `venv` what `kind` needs, unless it is there.

    Returns:
        the environment's Python.

    Raises:
        SystemExit: with one line, if the environment cannot be made.
    """
    python = venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if is_ready(kind, venv):
        return python
    with _held(venv.with_name(venv.name + ".lock")):
        if not is_ready(kind, venv):  # another start may have made it in the meantime
            try:
                _make(kind, venv, python)
            except subprocess.CalledProcessError:
                sys.exit(f"{venv} could not be made (see above); the next start tries again from the beginning.")
            except OSError as error:
                sys.exit(f"{venv} could not be made: {error}. Is a gateway of this folder still running?")
    return python


def is_ready(kind: Kind, venv: Path) -> bool:
    # The test lock contains all packages of the serve lock, in the same versions.
    return _stamp(venv) in {digest(k) for k in LOCKS if k in (kind, "test")}


def digest(kind: Kind) -> str:
    """Digest of all that an environment depends on: the lock, pyproject.toml, this Python and this folder."""
    state = hashlib.sha256()
    for part in (LOCKS[kind], "pyproject.toml"):
        state.update((ROOT / part).read_bytes())
    state.update(f"{sys.version_info[:3]} {sys.base_prefix} {ROOT}".encode())
    return state.hexdigest()


def _stamp(venv: Path) -> str:
    try:
        return (venv / "ready").read_text(encoding="utf-8")
    except OSError:
        return ""


def _make(kind: Kind, venv: Path, python: Path) -> None:
    if is_ready("serve", venv):
        (venv / "ready").unlink()
    else:
        print(f"Making {venv} with Python {sys.version.split()[0]}", file=sys.stderr)
        shutil.rmtree(venv, ignore_errors=not venv.exists())
        _run(sys.executable, "-m", "venv", str(venv))
    print(f"Installing {LOCKS[kind]}", file=sys.stderr)
    wheels_only = ("--require-hashes", "--only-binary=:all:", "--no-deps")
    _pip(python, *wheels_only, "-r", str(ROOT / LOCKS[kind]))
    _pip(python, "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    (venv / "ready").write_text(digest(kind), encoding="utf-8")


def _pip(python: Path, *arguments: str) -> None:
    quiet = ("--disable-pip-version-check", "--no-input")
    _run(str(python), "-m", "pip", "install", *quiet, *arguments)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock between processes. The system releases it when the process dies."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            file.seek(0)
            while True:
                with contextlib.suppress(OSError):  # fails after ten tries, one a second
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock


def become(command: list[str]) -> NoReturn:
    """Replace this process by `command`. On Windows, run it as a child and exit with its exit code."""
    if sys.platform != "win32":
        os.execv(command[0], command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child gets Ctrl-C from the console too, and handles it
    sys.exit(subprocess.call(command))
