"""The files of the page in `gateway/web/`, in memory. Only these can be requested, so no path leaves the folder."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from msgspec import Struct

FOLDER = Path(__file__).parents[2] / "web"
#: Other files of the folder are not served.
MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}


class WebFile(Struct, frozen=True):
    """One file. `etag`: of its bytes, with quotes."""

    body: bytes
    media_type: str
    etag: str


@cache
def web_files() -> dict[str, WebFile]:
    """Each file by its path below `gateway/web/`, with forward slashes."""
    files = (path for path in sorted(FOLDER.rglob("*")) if path.suffix in MEDIA_TYPES and path.is_file())
    return {
        path.relative_to(FOLDER).as_posix(): web_file_of(path.read_bytes(), MEDIA_TYPES[path.suffix]) for path in files
    }


def web_file_of(body: bytes, media_type: str) -> WebFile:
    return WebFile(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
