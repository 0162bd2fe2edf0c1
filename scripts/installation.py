"""Run the programs that make an environment. Their text goes to a file. The terminal gets one line of progress."""

import contextlib
import errno
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

_LOOK_S = 0.2
_SIZE = re.compile(r"^\s*(?:Downloading|Using cached) \S+\.whl \(([\d.]+) (k|M)B\)", re.MULTILINE)
_NO_WINDOW = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # only Windows has it
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_DISK_FULL = "the disk is full. Free some space and start again"


class NotMade(Exception):
    """The environment cannot be made. The text completes "... could not be installed: "."""


#: What pip writes -> the reason and the next step. {host}: the host of the package index. The first match counts.
_REASONS = (
    (r"No space left|\[Errno 28\]|\[Errno 122\]|WinError 112", _DISK_FULL),
    (
        r"ProxyError|Tunnel connection failed|Cannot connect to proxy",
        "the proxy does not let pip through to {host}. Check HTTPS_PROXY, or pip's setting `proxy`, and start again",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError",
        "the certificate of {host} is not trusted. If your network inspects HTTPS, set PIP_CERT to the file with its "
        "certificate and start again",
    ),
    (
        r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|getaddrinfo|\[Errno -[23]\]"
        r"|Network is unreachable|Connection refused|Connection reset|connection broken|timed out",
        "no network: {host} does not answer. Connect this machine, or set HTTPS_PROXY, and start again",
    ),
    (
        r"DO NOT MATCH THE HASHES",
        "a package has another content than the lock file states, and is not used. Check the package index of pip's "
        "configuration and start again",
    ),
    (
        r"No matching distribution found for (?P<what>\S+)",
        "the package index has no {what} for this Python and machine",
    ),
    (
        r"\[Errno 13\]|\[Errno 30\]|WinError 5\b|Permission denied|Read-only file system",
        "a file cannot be written. Check who owns this folder, and that no antivirus program holds a file in it",
    ),
)


def reason(text: str) -> str:
    """Why pip failed, from its text, with the next step."""
    host = re.search(r"host='([^']+)'|^Looking in indexes: \w+://(?:[^/@\s]*@)?([^/:,\s]+)", text, re.MULTILINE)
    named = (host[1] or host[2]) if host else "the package index"
    for pattern, sentence in _REASONS:
        if found := re.search(pattern, text):
            what = found.groupdict().get("what", "")
            return sentence.format(host=named, what=what)
    return "pip failed"


def os_reason(error: OSError) -> str:
    if error.errno in _FULL or getattr(error, "winerror", None) == 112:
        return _DISK_FULL
    return f"{error.filename or 'a file'}: {error.strerror or error}. Check who owns this folder"


class Step(NamedTuple):
    """One program.

    Args:
        shown: the line of progress, from the program's text so far.
    """

    command: list[str]
    shown: Callable[[str], str]


def run(steps: list[Step], log: Path) -> None:
    """Run the programs one after the other. Raises NotMade, OSError."""
    with log.open("wb") as file, _line() as show:
        for step in steps:
            start = log.stat().st_size
            with subprocess.Popen(
                step.command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, creationflags=_NO_WINDOW
            ) as process:
                try:
                    while process.poll() is None:
                        show(step.shown(_text(log, start)))
                        time.sleep(_LOOK_S)
                except BaseException:
                    process.kill()
                    raise
            file.seek(0, 2)
            if process.returncode:
                raise NotMade(f"{reason(_text(log, start))}. The text of pip is in {log}")


def _text(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", errors="replace")


@contextlib.contextmanager
def _line() -> Iterator[Callable[[str], None]]:
    """A line of the terminal that is overwritten. Another stream gets no progress."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return

    def show(text: str) -> None:
        print(f"\r{text[:78]:78}", end="\r", file=sys.stderr, flush=True)

    yield show
    show("")


def progress(packages: int, site_packages: Callable[[], Path | None]) -> Callable[[str], str]:
    """The line about pip: first it downloads each package, then it unpacks them all.

    Args:
        packages: in the lock file. Some are for other systems.
    """

    def shown(text: str) -> str:
        total = packages - text.count("Ignoring ")
        if "Installing collected packages" in text:
            folder = site_packages()
            done = len(list(folder.glob("*.dist-info"))) if folder else 0
            return f"  unpacked {min(done, total)} of {total}"
        megabytes = sum(float(size) / (1 if unit == "M" else 1000) for size, unit in _SIZE.findall(text))
        return f"  downloaded {max(text.count('Collecting ') - 1, 0)} of {total}, {megabytes:.0f} MB"

    return shown
