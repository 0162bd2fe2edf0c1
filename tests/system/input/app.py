"""The app without a socket, so that a request takes a millisecond."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Litestar

PATIENCE_S = 120.0


class AppClient:
    """Sends requests to the app on an event loop that runs only meanwhile."""

    def __init__(self, app: Litestar, runner: asyncio.Runner) -> None:
        self._app, self._runner = app, runner

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return the status and the body of the answer."""
        return self._runner.run(self._post(path, body))

    async def _post(self, path: str, body: bytes) -> tuple[int, bytes]:
        sent: list[Any] = []
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            if (message := next(messages, None)) is not None:
                return message
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        async with asyncio.timeout(PATIENCE_S):
            await self._app(_scope(path, len(body)), receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def _scope(path: str, length: int) -> Any:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"localhost"), (b"content-length", b"%d" % length)],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
