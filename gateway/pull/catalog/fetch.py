"""Small JSON documents from model servers, within limits of size and time."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import httpx
import msgspec

from gateway import __version__

_T = TypeVar("_T")
_LONGEST = 16 * 1024 * 1024  # bytes; the largest real document has 0.3 MB
_REASONS = {401: "refuses access", 403: "refuses access", 404: "does not have the file", 429: "gets too many requests"}


class Unreadable(Exception):
    """A document could not be read. The text ends the sentence "AI Hub ..."; `next_step` is another sentence."""

    next_step = "Try `npu-gateway catalog --refresh` later, and then a newer npu-gateway."


class Unreachable(Unreadable):
    """There was no answer, so other documents of the server are not worth another wait."""

    next_step = "Check the network, then run `npu-gateway catalog --refresh`."


class Reader:
    """Reads documents. Several threads may use one reader.

    Args:
        wait_s: limit for a connection and for each part of an answer.
        total_s: limit for a whole document.
        life_s: limit for all documents together. Later ones are not read.
    """

    def __init__(
        self,
        *,
        wait_s: float = 10.0,
        total_s: float = 60.0,
        life_s: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wait_s, self._total_s, self._clock = wait_s, total_s, clock
        self._life_s, self._last = life_s, clock() + life_s
        headers = {"User-Agent": f"npu-gateway/{__version__}"}
        self._client = httpx.Client(
            timeout=wait_s, follow_redirects=True, max_redirects=5, headers=headers, verify=_certificates()
        )

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def json(self, url: str, kind: type[_T]) -> _T:
        """The document as a `kind`. Raises Unreadable."""
        name = url.partition("?")[0].rpartition("/")[2]
        try:
            return msgspec.json.decode(self._read(url), type=kind, strict=False)  # protobuf writes int64 as text
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unreadable(f"sent a {name} of a form that this version does not know ({error})") from None
        except RecursionError:
            raise Unreadable(f"sent a {name} with too many nested lists or objects") from None

    def size(self, url: str) -> int | None:
        """Bytes of a file, from the header of its answer; None if the server does not say."""
        try:
            answer = self._client.head(url)
        except (httpx.HTTPError, httpx.InvalidURL):
            return None
        length = answer.headers.get("Content-Length", "")
        return int(length) if answer.is_success and length.isdecimal() else None

    def _read(self, url: str) -> bytes:
        now = self._clock()
        if now > self._last:
            raise Unreachable(f"is too slow: the lists need more than {self._life_s:.0f} s")
        end = min(now + self._total_s, self._last)
        try:
            with self._client.stream("GET", url) as answer:
                if not answer.is_success:
                    raise Unreadable(_refusal(answer.status_code, url))
                content = bytearray()
                for part in answer.iter_bytes():
                    content += part
                    if len(content) > _LONGEST:
                        raise Unreadable(f"sent more than {_LONGEST >> 20} MiB for {url}")
                    if self._clock() > end:
                        raise Unreachable(f"needs more than {self._total_s:.0f} s for {url}")
                return bytes(content)
        except httpx.TimeoutException:
            raise Unreachable(f"does not answer within {self._wait_s:.0f} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unreachable(f"cannot be reached ({str(error) or type(error).__name__})") from None


@cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context()


def _refusal(status: int, url: str) -> str:
    reason = _REASONS.get(status, "has a fault" if status >= 500 else "gave no document")
    return f"{reason} (HTTP {status} for {url})"
