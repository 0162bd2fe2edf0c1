"""Real gateways as processes, each with the scripted model "m": the servers behind another gateway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from gateway.config.tables import UpstreamModel
from tests.support.processes import Serving, free_port, serving
from tests.support.server import wait_until


class Backend:
    """A gateway process, started by `start` and ended by `kill`, which may be called in turn."""

    def __init__(self, folder: Path, number: int, script: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}/v1"
        self._folder = folder / f"backend{number}"
        self._folder.mkdir()
        table = f'[models.m]\nengine = "scripted"\nmax_sequences = 1000\n[models.m.script]\n{script}'
        (self._folder / "config.toml").write_text(table, encoding="utf-8")
        self._stack = ExitStack()
        self._running: Serving | None = None

    def start(self) -> None:
        """Returns at once; `wait` until it answers."""
        port = self.address.rpartition(":")[2]
        context = serving("--config", "config.toml", "--port", port, cwd=self._folder, PYTHONASYNCIODEBUG="")
        self._running = self._stack.enter_context(context)

    def wait(self) -> None:
        wait_until(self._answers, f"{self.address} does not answer")

    @property
    def is_alive(self) -> bool:
        return self._running is not None and self._running.process.poll() is None

    def kill(self) -> None:
        """SIGKILL; on Windows, TerminateProcess."""
        assert self._running is not None
        self._running.process.kill()

    def close(self) -> None:
        """Kill it, and wait for its end."""
        self._stack.close()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def backends(count: int, folder: Path, *, reply: str, token_s: float, ttft_s: str = "0") -> Iterator[list[Backend]]:
    """`count` processes that answer with `reply`, a word each `token_s`."""
    script = f'replies = ["{reply.strip()}"]\ntoken_s = {token_s}\nttft_s = {ttft_s}\n'
    running = [Backend(folder, number, script) for number in range(count)]
    try:
        for backend in running:
            backend.start()
        for backend in running:
            backend.wait()
        yield running
    finally:
        for backend in running:
            backend.close()


def targets_of(*urls: str, **fields: Any) -> UpstreamModel:
    """The table of a model "m" on these servers."""
    table = {"targets": urls, "upstream_model": "m", "max_sequences": 1000, "queue": 1000, **fields}
    return msgspec.convert(table, UpstreamModel)
