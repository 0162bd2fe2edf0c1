"""The virtual environment that the repository's commands run in. Standard library only: it does not exist yet.

    .venv/            made beside config.toml
    .venv/ready       written last: a digest of what was installed, so that the next start installs nothing
    .venv.lock        held while it is made, so that two starts at once make it once

A set-up that was interrupted has no `ready` file and is done again from the beginning. Every package comes as a wheel
with the hash that the lock file names, so no compiler is needed and nothing unexpected gets in.
"""

import sys
import sysconfig

# Before any import or syntax that an older Python would stumble over.
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
    """Make `venv` hold what `kind` needs, unless it already does.

    Returns the environment's Python. Exits with one line when it cannot be made.
    """
    python = venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if is_ready(kind, venv):
        return python
    with _held(venv.with_name(venv.name + ".lock")):
        if not is_ready(kind, venv):  # else another start has made it while this one waited
            try:
                _make(kind, venv, python)
            except subprocess.CalledProcessError:
                sys.exit(f"{venv} could not be made (see above); the next start tries again from the beginning.")
            except OSError as error:
                sys.exit(f"{venv} could not be made: {error}. Is a gateway of this folder still running?")
    return python


def is_ready(kind: Kind, venv: Path) -> bool:
    # The test lock holds everything that serving needs, in the same versions.
    return _stamp(venv) in {digest(k) for k in LOCKS if k in (kind, "test")}


def digest(kind: Kind) -> str:
    """What an environment depends on: the lock, the package's own metadata, this Python and this folder."""
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
    """Hold a lock between processes; the system lets go of it when its holder dies."""
    with path.open("a+b") as file:
        if sys.platform == "win32":
            file.seek(0)
            while True:
                with contextlib.suppress(OSError):  # gives up after ten tries, one a second
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                    break
        else:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file lets go


def become(command: list[str]) -> NoReturn:
    """Go on as `command`: the same process where the system can, a child whose end is ours on Windows."""
    if sys.platform != "win32":
        os.execv(command[0], command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the console gives Ctrl-C to the child too, which ends in its own way
    sys.exit(subprocess.call(command))
