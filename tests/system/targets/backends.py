"""Real gateways as processes: servers behind another gateway, and that other gateway."""

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
    """A gateway process on a fixed port. It can be killed and started again."""

    def __init__(self, folder: Path, config: str) -> None:
        folder.mkdir()
        (folder / "config.toml").write_text(config, encoding="utf-8")
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        self._folder = folder
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

    def signal(self, number: int) -> None:
        assert self._running is not None
        self._running.process.send_signal(number)

    def close(self) -> None:
        """Kill it, and wait for its end."""
        self._stack.close()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def running(*backends: Backend) -> Iterator[None]:
    """All of them, started at the same time."""
    try:
        for backend in backends:
            backend.start()
        for backend in backends:
            backend.wait()
        yield
    finally:
        for backend in backends:
            backend.close()


def scripted_table(*replies: str, token_s: float, ttft_s: float = 0.0) -> str:
    """A configuration with a model "m" that answers with these in turn, a word each `token_s`. More can follow it."""
    texts = ", ".join(f'"{reply.strip()}"' for reply in replies)
    script = f"[models.m.script]\nreplies = [{texts}]\ntoken_s = {token_s}\nttft_s = {ttft_s}\n"
    return f'[models.m]\nengine = "scripted"\nmax_sequences = 1000\n{script}'


def targets_of(*targets: str | dict[str, Any], **fields: Any) -> UpstreamModel:
    """The table of a model "m" on these servers, with the default breaker."""
    table = {"targets": targets, "upstream_model": "m", "breaker": {}, "max_sequences": 1000, "queue": 1000, **fields}
    return msgspec.convert(table, UpstreamModel)
