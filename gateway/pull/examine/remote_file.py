"""A file on a server that is read in parts, by HTTP ranges: the list of a zip's files, and its small files."""

from __future__ import annotations

import io
import re
from types import TracebackType
from urllib.parse import unquote, urlsplit

import httpx

from gateway.errors import BundleError
from gateway.pull.transport import AgainError, Transport, host_of

_BLOCK = 128 * 1024  # bytes of one request at least
_MOST_BLOCKS = 256  # that are kept
_MOST_BYTES = 256 * 1024 * 1024  # that are read of one file: a list of entries and small files have a few MB
_TRIES = 3
_SILENCE_S = 30.0  # without a byte
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class RemoteFile(io.RawIOBase):
    """Read-only and seekable. Raises BundleError if the server fails or sends only whole files."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = unquote(urlsplit(url).path).rpartition("/")[2] or host_of(url)
        self._transport = Transport(_SILENCE_S)
        self._blocks: dict[int, bytes] = {}
        self._position = self._received = 0
        self._size: int | None = None
        self._version: tuple[str, str | None] | None = None
        try:
            self._block(0)
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        assert self._size is not None
        return self._size

    def close(self) -> None:
        self._transport.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError("a position before the start")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """As `read` of a file: `size` bytes, fewer at the end."""
        left = max(0, self.size - self._position)
        size = left if size is None or size < 0 else min(size, left)
        parts = []
        while size > 0:
            number, offset = divmod(self._position, _BLOCK)
            part = self._block(number)[offset : offset + size]
            if not part:
                raise BundleError(f"{self.name}: {host_of(self.url)} sends fewer bytes than it states.")
            parts.append(part)
            self._position += len(part)
            size -= len(part)
        return b"".join(parts)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            if len(self._blocks) == _MOST_BLOCKS:
                self._blocks.pop(next(iter(self._blocks)))
            self._blocks[number] = self._fetch(number * _BLOCK)
        return self._blocks[number]

    def _fetch(self, start: int) -> bytes:
        headers = {"range": f"bytes={start}-{start + _BLOCK - 1}"}
        for attempt in range(_TRIES):
            try:
                with self._transport.get(self.url, headers, {}, self.name) as response:
                    content = self._part(response, start)
                self._received += len(content)
                if self._received > _MOST_BYTES:
                    raise BundleError(f"{self.name}: its list of files is too long to be examined. Pull it instead.")
                return content
            except (AgainError, httpx.TransportError) as error:
                if attempt == _TRIES - 1:
                    raise BundleError(
                        f"{self.name} could not be read from {host_of(self.url)}: {error}. Check the network."
                    ) from error
        raise AssertionError

    def _part(self, response: httpx.Response, start: int) -> bytes:
        found = _RANGE.fullmatch(response.headers.get("content-range", ""))
        if response.status_code != 206 or found is None or int(found[1]) != start:
            raise BundleError(
                f"{self.name} cannot be examined before it is downloaded: {host_of(self.url)} sends whole files only. "
                f"`npu-gateway pull {self.url}` downloads it, and checks it then."
            )
        version = (found[3], response.headers.get("etag") or response.headers.get("last-modified"))
        if self._version not in (None, version):
            raise BundleError(f"{self.name} changed on {host_of(self.url)} while it was read. Try again.")
        self._version, self._size = version, int(found[3])
        content = b""
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > _BLOCK:
                raise BundleError(f"{self.name}: {host_of(self.url)} sends more bytes than were requested.")
        return content
