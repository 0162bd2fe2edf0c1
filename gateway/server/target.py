"""Requests in a form that Litestar's routes do not have: HEAD, and a target in absolute form.

1. HEAD is GET without the body. The routes see GET; uvicorn leaves out the body and keeps its length.
2. `GET http://127.0.0.1:8000/v1/models`, as clients send to a proxy. Its host replaces the header `Host` (RFC 9112,
   3.2.2), so the guards check the right one.
3. `OPTIONS *` is answered as `OPTIONS /`.
4. `/v1/models/{id}/load`: a name can have slashes, and Litestar takes those only at the end. See openai_api/load.py.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from litestar.types import ASGIApp, Receive, Send

_LOAD = re.compile(r"(?:/v1)?/models/(.+)/(load|unload)")
_ABSOLUTE = re.compile(rb"https?://([^/@]+)(/.*)?", re.IGNORECASE | re.DOTALL)


def with_any_target(app: ASGIApp) -> ASGIApp:
    """`app`, for requests in each form."""

    async def changed(scope: Any, receive: Receive, send: Send) -> None:
        await app(scope | _changes(scope) if scope["type"] == "http" else scope, receive, send)

    return changed


def _changes(scope: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {"method": "GET"} if scope["method"] == "HEAD" else {}
    if scope["path"] == "*":
        return changes | {"path": "/", "raw_path": b"/"}
    found = _ABSOLUTE.fullmatch(scope["raw_path"])
    if found is None:  # the usual form, or one that no route has
        return changes | _load_path(scope["path"])
    raw_path = found[2] or b"/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    path = unquote(raw_path.decode("ascii", "replace"))
    changes |= {"path": path, "raw_path": raw_path, "headers": [(b"host", found[1]), *headers]}
    return changes | _load_path(path)


def _load_path(path: str) -> dict[str, Any]:
    found = _LOAD.fullmatch(path)
    return {"path": f"/v1/{found[2]}/{found[1]}"} if found else {}
