"""What the tests of the OpenAI API share."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.support.server import Running, wait_until


def chunks_of(text: str) -> list[dict[str, Any]]:
    """The decoded `data:` lines of a stream that ended with [DONE]."""
    frames = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    assert frames[-1] == "[DONE]" and frames.count("[DONE]") == 1
    return [msgspec.json.decode(frame) for frame in frames[:-1]]


def running_requests(server: Running, model: str) -> int:
    return next(status.running for status in server.app.state.router.status() if status.model == model)


def wait_until_running(server: Running, model: str) -> None:
    wait_until(lambda: running_requests(server, model) > 0, f"{model} runs no request")


def wait_until_idle(server: Running, model: str) -> None:
    wait_until(lambda: not running_requests(server, model), f"{model} still runs a request")
