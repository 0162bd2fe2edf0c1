"""AI Hub's bucket and the Hugging Face Hub on localhost: their paths and JSON, and their faults.

/FILE                                        a file of the bucket, or any document, with its query
/api/models/ORG/REPO[/revision/main]         a repository of the Hub, also .../tree/REVISION
/ORG/REPO/resolve/REVISION/FILE              a file in it; large ones redirect to /cdn/..., as the Hub does
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
LARGE = 1024  # bytes; the Hub keeps a larger file elsewhere, under its sha256


class Fault:
    """How the server behaves for one path.

    Args:
        cuts: the k-th answer ends after this number of bytes of its body, with the connection; then no answer does.
        status: an answer without the file, `times` times.
        ranges: False: a range is ignored.
        stalls: this number of answers stop in the middle of the body, until the client closes the connection.
        flips: this number of answers has a wrong bit in its last byte.
        etag: "strong", "weak" or "" for none; without it there is a date.
        redirect: the answer leads there.
        location: "wrong": a range begins one byte later than requested.
    """

    def __init__(
        self,
        *,
        cuts: list[int] | None = None,
        status: int = 0,
        times: int = 1 << 30,
        ranges: bool = True,
        flips: int = 0,
        stalls: int = 0,
        etag: str = "strong",
        redirect: str = "",
        location: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.cuts = cuts or []
        self.status, self.times, self.ranges, self.flips = status, times, ranges, flips
        self.stalls = stalls
        self.etag, self.redirect, self.location, self.headers = etag, redirect, location, headers or {}


class ModelServer:
    """What the server has and what it was requested."""

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}  # path without the first slash -> content
        self.repos: dict[str, dict[str, bytes]] = {}  # "org/repo" -> file -> content
        self.cards: dict[str, dict[str, Any]] = {}  # "org/repo" -> the metadata of its README
        self.faults: dict[str, Fault] = {}  # path -> fault
        self.requests: list[tuple[str, str]] = []  # path, the Range header
        self.bytes: list[tuple[str, int]] = []  # path, bytes that were sent
        self.authorizations: list[tuple[str, str]] = []
        self.active = 0  # requests now
        self._lock = threading.Lock()

    def add(self, path: str, content: bytes, **fault: Any) -> str:
        """Put a file into the bucket. Returns its URL."""
        self.files[path] = content
        if fault:
            self.faults[path] = Fault(**fault)
        return f"{self.url}/{path}"

    def sent(self, path: str) -> list[str]:
        """The Range headers of the requests for a path."""
        return [byte_range for found, byte_range in self.requests if found == path]

    def sent_bytes(self, path: str) -> list[int]:
        """The bytes of the answers with a file."""
        return [size for found, size in self.bytes if found == path]

    def settle(self) -> None:
        """Wait until every request of clients that are gone has ended."""
        urllib.request.urlopen(f"{self.url}/api/models/").close()  # accepted after those that came before it
        until = time.monotonic() + 60
        while self.active:
            assert time.monotonic() < until, "a request does not end"
            time.sleep(0.005)

    def fault_of(self, path: str) -> Fault:
        return self.faults.setdefault(path, Fault())

    def count(self, change: int) -> None:
        with self._lock:
            self.active += change

    def next_cut(self, path: str) -> int | None:
        with self._lock:
            cuts = self.fault_of(path).cuts
            return cuts.pop(0) if cuts else None

    def take(self, path: str, what: str) -> bool:
        """True if the fault happens once more."""
        with self._lock:
            fault = self.fault_of(path)
            left: int = getattr(fault, what)
            setattr(fault, what, left - 1)
            return left > 0


def tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """The Hub's list of a repository's files."""
    return [_entry(name, content) for name, content in files.items()]


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    if len(content) > LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        models = self.server.models
        path = unquote(urlsplit(self.path).path).lstrip("/")
        models.requests.append((path, self.headers.get("Range", "")))
        if authorization := self.headers.get("Authorization"):
            models.authorizations.append((path, authorization))
        fault = models.fault_of(path)
        if fault.status and models.take(path, "times"):
            self._reply(fault.status, b"refused", fault.headers)
        elif fault.redirect:
            self._reply(302, b"", {"Location": fault.redirect})
        elif path in models.files:
            self._send(path, models.files[path], {})
        elif (whole := unquote(self.path).lstrip("/")) in models.files:  # with its query
            self._send(whole, models.files[whole], {})
        elif path == "api/models/":
            self._reply(200, b"[]")
        elif path.startswith("api/models/"):
            self._describe(path.removeprefix("api/models/"))
        else:
            self._resolve(path)

    do_HEAD = do_GET

    def _describe(self, path: str) -> None:
        models = self.server.models
        repo = path.partition("/tree/")[0].partition("/revision/")[0]
        if repo not in models.repos:
            self._reply(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif "/tree/" in path:
            self._reply(200, json.dumps(tree(models.repos[repo])).encode())
        else:
            siblings = [{"rfilename": name} for name in models.repos[repo]]
            card = {"id": repo, "sha": COMMIT, "siblings": siblings, "cardData": models.cards.get(repo, {})}
            self._reply(200, json.dumps(card).encode())

    def _resolve(self, path: str) -> None:
        models = self.server.models
        found = re.fullmatch(r"([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        content = models.repos.get(found[1], {}).get(found[2]) if found else None
        if content is None or found is None:
            self._reply(404, b"not found")
            return
        linked = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content))}
        if len(content) > LARGE:
            sha256 = hashlib.sha256(content).hexdigest()
            models.files[f"cdn/{found[1]}/{sha256}"] = content
            elsewhere = models.url.replace("127.0.0.1", "localhost")  # the Hub uses another host
            headers = {"Location": f"{elsewhere}/cdn/{found[1]}/{sha256}", "X-Linked-Etag": f'"{sha256}"', **linked}
            self._reply(302, b"", headers)
        else:
            self._send(path, content, linked)

    def _send(self, path: str, content: bytes, headers: dict[str, str]) -> None:
        """A file, or the rest of it from the byte that the client asks for."""
        models, fault = self.server.models, self.server.models.fault_of(path)
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        validator = {"strong": etag, "weak": f"W/{etag}", "": ""}[fault.etag]
        dated = {"ETag": validator} if validator else {"Last-Modified": formatdate(1e9, usegmt=True)}
        first = self._first_byte(content, validator, dated) if fault.ranges else 0
        end = self._end(len(content)) if fault.ranges else 0
        body, status = content[first : end or None], 206 if first or end else 200
        if first >= len(content) > 0:
            self._reply(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        if status == 206:
            shown = first + 1 if fault.location == "wrong" else first
            headers = headers | {"Content-Range": f"bytes {shown}-{(end or len(content)) - 1}/{len(content)}"}
        if models.take(path, "flips"):
            body = body[:-1] + bytes([body[-1] ^ 1])
        self._reply(status, body, {**dated, "Accept-Ranges": "bytes", **headers, **fault.headers}, path)

    def _first_byte(self, content: bytes, validator: str, dated: dict[str, str]) -> int:
        wanted = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))
        condition = self.headers.get("If-Range")
        if wanted is None or (condition is not None and condition not in dated.values()):
            return 0
        return int(wanted[1])

    def _end(self, size: int) -> int:
        """The end of a range that has one, else 0."""
        wanted = re.fullmatch(r"bytes=\d+-(\d+)", self.headers.get("Range", ""))
        return min(int(wanted[1]) + 1, size) if wanted else 0

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, path: str = "") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Type" not in (headers or {}):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            cut = self.server.models.next_cut(path) if path else None
            body = body if cut is None else body[:cut]
            is_stalled = bool(path) and self.server.models.take(path, "stalls")
            body = body[: len(body) // 2] if is_stalled else body
            self.server.models.bytes.append((path, len(body)))
            self.wfile.write(body)
            if is_stalled:
                with suppress(OSError):
                    self.connection.recv(1)
            self.close_connection = True

    def log_message(self, *arguments: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, models: ModelServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self.models.count(1)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.models.count(-1)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error."""


@contextmanager
def serve_models() -> Iterator[ModelServer]:
    """Run the server until the end of the block."""
    models = ModelServer()
    server = _Server(models)
    models.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield models
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
