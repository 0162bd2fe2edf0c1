"""Make the virtual environment for the repository's commands. Standard library only, because nothing is installed yet.

    .venvs/DIGEST/           one environment; DIGEST is of all that it depends on
    .venvs/DIGEST/ready      written last: the digest. Without it, the next start makes the environment again
    .venvs/DIGEST/in-use     a running gateway holds a lock on it (not on Windows, which locks the files of a program)
    .venvs/DIGEST/code/      copies of the package `gateway`, so that `git pull` changes no code under a running gateway
    .venv                    a link to the newest environment, on Windows a junction
    .venv.lock               a lock, so that two starts at the same time make the environment once

An environment is never changed after it is ready: new packages are installed into a new one. So a running gateway
keeps its packages, and without a network the last environment still serves. One that no gateway uses is removed.
Every package is a wheel with a hash from the lock file: no compiler is needed, and pip refuses any other file.
"""

import check_python  # noqa: F401, I001  exits on an old Python, before it meets newer syntax

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NoReturn

import code_copy
from installation import NotMade, Step, os_reason, progress, run

if sys.platform == "win32":
    import _winapi
    import msvcrt
else:
    import fcntl

ROOT = Path(__file__).resolve().parent.parent
Kind = Literal["serve", "emulation", "test"]
#: The lock file of each kind. A later one contains all packages of an earlier one, in the same versions.
LOCKS: dict[Kind, str] = {
    "serve": "requirements.lock",
    "emulation": "requirements-emulation.lock",  # of the NPU, on x86
    "test": "requirements-test.lock",
}
#: megabytes to download and on the disk, about (docs/upgrade.md)
SIZES: dict[Kind, tuple[int, int]] = {"serve": (100, 340), "emulation": (200, 590), "test": (280, 750)}
_INTERRUPTED = 130


def ensure(kind: Kind, venv: Path = ROOT / ".venv") -> Path:
    """Make `venv` a link to an environment with the packages that `kind` needs, unless it is one.

    Returns:
        the Python of the environment.

    Raises:
        SystemExit: with one line, if the environment cannot be made and there is no older one.
    """
    try:
        if is_ready(kind, venv):
            return _python(_real(venv))
        with _held(venv.with_name(venv.name + ".lock")):
            return _python(_ready_environment(kind, venv))
    except KeyboardInterrupt:
        print("npu-gateway: interrupted; the next start continues", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except OSError as error:
        sys.exit(f"npu-gateway: {venv} could not be made: {os_reason(error)}.")


def is_ready(kind: Kind, venv: Path) -> bool:
    kinds = list(LOCKS)
    return _stamp(venv) in {digest(enough) for enough in kinds[kinds.index(kind) :]}


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


def _python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _real(venv: Path) -> Path:
    """The environment itself. A program that is started through the link would follow it to a later environment."""
    return venv.resolve()


def _ready_environment(kind: Kind, venv: Path) -> Path:
    """The environment, made if necessary; an older one if that fails. The caller holds the lock."""
    if is_ready(kind, venv):  # another start has made it in the meantime
        return _real(venv)
    store = venv.with_name(venv.name + "s")
    made = store / digest(kind)[:16]
    if not is_ready(kind, made):
        try:
            _make(kind, made)
        except (NotMade, OSError) as error:
            why = os_reason(error) if isinstance(error, OSError) else str(error)
            if not (_stamp(venv) and _python(venv).exists()):
                sys.exit(f"npu-gateway: the packages could not be installed: {why}.")
            print(f"npu-gateway: the new packages could not be installed: {why}.", file=sys.stderr)
            print("npu-gateway: the last version starts instead", file=sys.stderr)
            return _real(venv)
    _link(venv, made)
    _remove_unused(store, made)
    return made


def _make(kind: Kind, venv: Path) -> None:
    """Raises NotMade, OSError."""
    packages = len(re.findall(r"^[a-z0-9].*==", (ROOT / LOCKS[kind]).read_text(encoding="utf-8"), re.MULTILINE))
    download, size = SIZES[kind]
    _require(venv.parent, size)
    shutil.rmtree(venv, ignore_errors=not venv.exists())  # of an interrupted start
    print(f"Installing packages: about {download} MB to download, {size} MB on the disk", file=sys.stderr, flush=True)
    wheels_only = ("--require-hashes", "--only-binary=:all:", "--no-deps", "-r", str(ROOT / LOCKS[kind]))
    itself = ("--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    steps = [
        Step([sys.executable, "-m", "venv", str(venv)], lambda text: "  making the environment"),
        Step(_pip(venv, *wheels_only), progress(packages, lambda: _site_packages(venv))),
        Step(_pip(venv, *itself), lambda text: "  installing npu-gateway"),
    ]
    run(steps, venv.with_name("install.log"))
    (venv / "in-use").touch()
    if kind != "test":  # the tests run the files of the clone
        (venv / "code").mkdir()
    (venv / "ready").write_text(digest(kind), encoding="utf-8")


def _require(folder: Path, megabytes: int) -> None:
    """Raises NotMade, OSError."""
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise NotMade(f"{sys.executable} has no module venv. On Debian and Ubuntu: `sudo apt install python3-venv`")
    folder.mkdir(exist_ok=True)
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < megabytes:
        raise NotMade(f"{folder} needs {megabytes} MB, and {free} MB are free. Free some space and start again")


def _pip(venv: Path, *arguments: str) -> list[str]:
    # --no-compile: most files are never imported; the others are compiled at the first start
    quiet = ("--disable-pip-version-check", "--no-input", "--no-compile", "--retries", "2", "--progress-bar", "off")
    return [str(_python(venv)), "-m", "pip", "install", *quiet, *arguments]


def _site_packages(venv: Path) -> Path | None:
    return next(iter(venv.glob("[Ll]ib/**/site-packages")), None)


def _link(venv: Path, target: Path) -> None:
    """Let `venv` point to `target`. If the system refuses it, gateways still start with the right environment."""
    with contextlib.suppress(OSError):
        if _is_link(venv):
            venv.rmdir() if sys.platform == "win32" else venv.unlink()
        elif venv.exists():  # made by an earlier version
            before = target.with_name("before")
            shutil.rmtree(before, ignore_errors=True)
            venv.rename(before)
        if sys.platform == "win32":
            _winapi.CreateJunction(str(target), str(venv))
        else:
            venv.symlink_to(target.relative_to(venv.parent), target_is_directory=True)


def _is_link(path: Path) -> bool:
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            return bool(path.readlink())
        return False
    return path.is_symlink()


def _remove_unused(store: Path, current: Path) -> None:
    """Remove the other environments, except those that a running program uses."""
    for venv in store.iterdir():
        if venv != current and venv.is_dir() and not _is_in_use(venv):
            (venv / "ready").unlink(missing_ok=True)
            shutil.rmtree(venv, ignore_errors=True)


def _is_in_use(venv: Path) -> bool:
    try:
        if sys.platform == "win32":  # refuses to rename a folder with a running program
            venv.rename(venv.with_name("removed")).rename(venv)
        else:
            with (venv / "in-use").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:  # it was never complete
        return False
    except OSError:
        return True


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a lock between processes. The system releases it when the process dies."""
    with path.open("a+b") as file:
        if not _try_lock(file.fileno()):
            print("Another start installs the packages; waiting for it", file=sys.stderr, flush=True)
            while not _try_lock(file.fileno(), wait=True):
                pass
        yield  # closing the file releases the lock


def _try_lock(descriptor: int, *, wait: bool = False) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 0, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # LK_LOCK waits for 10 s
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _hold(venv: Path) -> None:
    """Hold a lock until the program that replaces this process ends. Its children do not inherit it."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            descriptor = os.open(venv / "in-use", os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.set_inheritable(descriptor, True)


def gateway_command(python: Path, *arguments: str) -> list[str]:
    """The command that runs npu-gateway. An environment without test packages gets a copy of the code first.

    Raises:
        SystemExit: with one line, if the code cannot be copied.
    """
    venv = python.parent.parent
    if (venv / "code").is_dir() and is_ready("serve", venv):  # an older version has its older code
        try:
            with _held(ROOT / ".venv.lock"):
                code_copy.refresh(ROOT, venv, may_remove=not _is_in_use(venv))
                _hold(venv)
        except OSError as error:
            sys.exit(f"npu-gateway: the code could not be copied: {os_reason(error)}.")
    return [str(python), "-P", "-m", "gateway", *arguments]  # -P: not the `gateway` of the current folder


def become(command: list[str]) -> NoReturn:
    """Replace this process by `command`. On Windows, run it as a child and exit with its exit code."""
    if sys.platform != "win32":
        _hold(Path(command[0]).parent.parent)
        os.execv(command[0], command)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child gets Ctrl-C from the console too, and handles it
    sys.exit(subprocess.call(command))
