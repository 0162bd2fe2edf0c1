"""A model hub on localhost: serves one repository from a folder, for `snapshot_download`."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_COMMIT = "a" * 40


class Served(list[str]):
    """The downloaded files. Those in `flipped` arrive with a wrong bit."""

    def __init__(self) -> None:
        super().__init__()
        self.flipped: set[str] = set()


def _large_file(file: Path) -> dict[str, Any]:
    """What the hub says about a file that is too large for git."""
    content = file.read_bytes()
    return {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}}


@contextmanager
def serve_hub(repo: str, folder: Path) -> Iterator[tuple[str, Served]]:
    """Run the hub. Yields its base URL and the growing list of downloaded files."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            prefix = f"/{repo}/resolve/{_COMMIT}/"
            if path == f"/api/models/{repo}/revision/main":
                self._answer(json.dumps({"id": repo, "sha": _COMMIT, "siblings": []}).encode())
            elif path == f"/api/models/{repo}/tree/{_COMMIT}":
                self._answer(json.dumps([_entry(file) for file in folder.rglob("*") if file.is_file()]).encode())
            elif path.startswith(prefix):
                if self.command == "GET":
                    served.append(path.removeprefix(prefix))
                name = path.removeprefix(prefix)
                self._answer((folder / name).read_bytes(), name in served.flipped)
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def _answer(self, body: bytes, is_flipped: bool = False) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", _COMMIT)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:-1] + bytes([body[-1] ^ 1]) if is_flipped else body)

        def log_message(self, *arguments: Any) -> None:
            pass

    def _entry(file: Path) -> dict[str, Any]:
        name = file.relative_to(folder).as_posix()
        return {
            "type": "file",
            "path": name,
            "size": file.stat().st_size,
            "oid": hashlib.sha1(name.encode()).hexdigest(),
        } | (_large_file(file) if file.suffix == ".safetensors" else {})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
