"""Downloads one file over HTTP. A download that was cut or killed continues where it ended.

    FILE.part   the bytes so far
    FILE.json   where they come from: URL, size, and the ETag or date by which the server recognises the same content

A server that has no ranges, or whose file has changed, starts again at byte 0. The size is always compared, the sha256
if it is published.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import httpx
import msgspec
from msgspec import Struct, field

from gateway.bundles.disk import megabytes, require_space, write_error
from gateway.errors import BundleError
from gateway.pull.report import Report
from gateway.pull.transport import AgainError, Transport, host_of

_UNKNOWN_STEP = 64 << 20  # bytes after which the free space is compared again, if the server does not state a size
_TRIES = 8  # attempts in a row that bring no new byte
_TRIES_AT_FIRST = 4  # of a host that never had a connection: 3.5 s
_SILENCE_S = 30.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.5, 20.0


class Remote(Struct, frozen=True, kw_only=True):
    """A file to download. `size` and `sha256` are what its publisher says; 0 and "": not published."""

    url: str
    name: str  # in messages
    size: int = 0
    sha256: str = ""
    headers: dict[str, str] = field(default_factory=dict)  # for the host of `url` only


class _Known(Struct, frozen=True, kw_only=True):
    """The content of FILE.json."""

    url: str
    size: int  # 0: the server does not say
    validator: str  # a strong ETag, or the date of the last change; "": none


class Downloader:
    """Downloads files one after the other.

    Args:
        sleep: waits for a number of seconds between two attempts.
        silence_s: a server that sends no byte for this time has failed.
    """

    def __init__(self, sleep: Callable[[float], object] = time.sleep, silence_s: float = _SILENCE_S) -> None:
        self._sleep = sleep
        self._transport = Transport(silence_s)

    def close(self) -> None:
        self._transport.close()

    def fetch(
        self, remote: Remote, file: Path, report: Report, admit: Callable[[int], None] = lambda size: None
    ) -> None:
        """Download `remote` to `file`, which is complete afterwards. Returns at once if it is there.

        Args:
            admit: called with the size in bytes, if it is known, before the first byte comes. It may raise.
        Raises BundleError that names the host, the reason and the next step.
        """
        if file.is_file():
            return
        for _ in range(2):
            self._receive(remote, file, report, admit)
            if not remote.sha256 or _sha256(_part(file), remote, report) == remote.sha256.lower():
                _part(file).replace(file)
                _known_file(file).unlink(missing_ok=True)
                return
            _forget(file)
        raise BundleError(
            f"{remote.name} has another sha256 than its publisher states, twice. Nothing was installed. Try another "
            "network, or report it to the publisher."
        )

    def _receive(self, remote: Remote, file: Path, report: Report, admit: Callable[[int], None]) -> None:
        """Download all bytes to FILE.part, in as many attempts as it takes while each brings new bytes."""
        failures, most = 0, 0
        while True:
            most = max(most, _size(_part(file)))
            try:
                return self._attempt(remote, file, report, admit)
            except (httpx.TransportError, AgainError) as error:
                failures = 1 if _size(_part(file)) > most else failures + 1
                reason = (str(error) or type(error).__name__).rstrip(".")
                if failures >= _tries(error, file):
                    raise BundleError(
                        f"{remote.name} could not be downloaded from {host_of(remote.url)}: {reason}. "
                        "Check the network; the same command continues the download."
                    ) from error
                if failures > 1:
                    report(f"waiting for {host_of(remote.url)}: {reason}", 0, 0)
                if isinstance(error, AgainError) and error.from_start:
                    _forget(file)
                pause_s = min(_FIRST_PAUSE_S * 2 ** (failures - 1), _MAX_PAUSE_S)
                self._sleep(max(pause_s, getattr(error, "pause_s", 0.0)))
            except OSError as error:
                raise write_error(file.parent, error) from error

    def _attempt(self, remote: Remote, file: Path, report: Report, admit: Callable[[int], None]) -> None:
        known, have = _read_known(file, remote), _size(_part(file))
        if known is None or have > (known.size or have):
            _forget(file)
            known, have = None, 0
        if known and known.size and have == known.size:
            return
        with self._transport.get(remote.url, _range(known, have), remote.headers, remote.name) as response:
            if known is None or response.status_code == 200:
                known, have = _begin(response, remote, file), 0
                admit(known.size)
            else:
                _check_rest(response, known, have)
            if known.size > have:
                require_space({file.parent: known.size - have}, f"The download of {remote.name}")
            _append(response, file, known.size, have, lambda done, all_: report(_stage(remote), done, all_))


def _tries(error: Exception, file: Path) -> int:
    return _TRIES_AT_FIRST if isinstance(error, httpx.ConnectError) and not _size(_part(file)) else _TRIES


def _range(known: _Known | None, have: int) -> dict[str, str]:
    if not known or not have:
        return {}
    return {"range": f"bytes={have}-", **({"if-range": known.validator} if known.validator else {})}


def _begin(response: httpx.Response, remote: Remote, file: Path) -> _Known:
    """Forget what is there, and note what is coming."""
    if response.status_code == 206:
        raise BundleError(f"{remote.name}: {host_of(remote.url)} sends a part, although the whole was requested.")
    _forget(file)
    length = response.headers.get("content-length", "")
    size = int(length) if length.isdecimal() else 0
    if remote.size and size and size != remote.size:
        raise BundleError(
            f"{remote.name} has {size} bytes at {host_of(remote.url)}, and its publisher states {remote.size}. "
            "Nothing was installed. Update the list of models with a newer npu-gateway, or give the URL itself."
        )
    known = _Known(url=remote.url, size=size or remote.size, validator=_validator(response))
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    new.write_bytes(msgspec.json.encode(known))
    new.replace(_known_file(file))
    return known


def _check_rest(response: httpx.Response, known: _Known, have: int) -> None:
    """Raises AgainError if the bytes of a 206 response do not continue the part."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d+|\*)", response.headers.get("content-range", ""))
    is_rest = found is not None and int(found[1]) == have and found[2] in ("*", str(known.size))
    if not is_rest or _validator(response) not in ("", known.validator):
        raise AgainError("the server sent another part than the one that is missing", from_start=True)


def _append(response: httpx.Response, file: Path, size: int, have: int, report: Callable[[int, int], None]) -> None:
    """Write the body to the end of FILE.part. `size`: of the whole file in bytes, 0 if unknown; `have`: of the part."""
    with _part(file).open("ab", buffering=0) as part:
        report(have, size)
        for chunk in response.iter_raw():
            have += len(chunk)
            if not size and have // _UNKNOWN_STEP > (have - len(chunk)) // _UNKNOWN_STEP:
                require_space({file.parent: _UNKNOWN_STEP}, f"The rest of {file.name}")
            if size and have > size:
                raise AgainError(f"more than {size} bytes came", from_start=True)
            _write_whole(part, chunk)
            report(have, size)
    if size and have != size:
        raise AgainError(f"only {megabytes(have)} of {megabytes(size)} came")


def _write_whole(part: FileIO, chunk: bytes) -> None:
    """An almost full disk takes a part of `chunk`, without an error before the next write."""
    left = memoryview(chunk)
    while left:
        left = left[part.write(left) :]


def _read_known(file: Path, remote: Remote) -> _Known | None:
    """What is known of FILE.part. None if it cannot be continued."""
    try:
        known = msgspec.json.decode(_known_file(file).read_bytes(), type=_Known)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    is_same = known.url == remote.url and (not remote.size or known.size == remote.size)
    return known if is_same and (known.validator or remote.sha256) else None


def _validator(response: httpx.Response) -> str:
    etag: str = response.headers.get("etag", "")
    return etag if etag.startswith('"') else response.headers.get("last-modified", "")


def _sha256(path: Path, remote: Remote, report: Report) -> str:
    digest, done, size = hashlib.sha256(), 0, _size(path)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            done += len(block)
            report(f"checking {remote.name}", done, size)
    return digest.hexdigest()


def _stage(remote: Remote) -> str:
    return f"downloading {remote.name}"


def _part(file: Path) -> Path:
    return file.with_name(f"{file.name}.part")


def _known_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _forget(file: Path) -> None:
    _part(file).unlink(missing_ok=True)
    _known_file(file).unlink(missing_ok=True)
