"""Answers with many log-probabilities: bounded in memory, and rendered without blocking the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.config.tables import LocalModel
from gateway.engines.context import MAX_LOGPROBS
from tests.support.server import PATIENCE_S, Running, config_of, serving

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "logprobs": True}
FULL: dict[str, Any] = {"model": "m", "temperature": 1, "seed": 1, "ignore_eos": True}


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Running]:
    with serving(config_of({"m": LocalModel(path=str(tiny), threads=1)})) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {**CHAT, "n": 128, "max_tokens": 400, "top_logprobs": 20}),
        ("/v1/chat/completions", {**CHAT, "n": 128, "max_tokens": 10**6, "top_logprobs": 9}),
        ("/v1/completions", {"prompt": "x", "n": 128, "max_tokens": 400, "logprobs": 5}),
        ("/v1/completions", {"prompt": "x", "n": 1, "best_of": 128, "max_tokens": 400, "logprobs": 5}),
    ],
)
def test_answer_with_too_many_log_probabilities_is_refused(
    path: str, fields: dict[str, Any], stream: bool, server: Running
) -> None:
    with server.http() as http:
        reply = http.post(path, json={**FULL, **fields, "stream": stream and "best_of" not in fields})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "logprobs"
    assert f"at most {MAX_LOGPROBS} are possible" in reply.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_largest_answer_does_not_block_the_event_loop(path: str, server: Running) -> None:
    """tests/conftest.py checks the event loop. Before, 128 choices of 400 tokens took 0.9 s of it, and 190 MiB."""
    before = psutil.Process().memory_info().rss
    if path == "/v1/completions":
        fields: dict[str, Any] = {"prompt": "x", "logprobs": 5, "n": 100, "max_tokens": 400}
    else:
        fields = {**CHAT, "top_logprobs": 20, "n": 28, "max_tokens": 400}
    with server.http(timeout=PATIENCE_S) as http:
        reply = http.post(path, json={**FULL, **fields})
    choices = reply.json()["choices"]
    logprobs = [choice["logprobs"] for choice in choices]
    assert len(choices) == fields["n"]
    assert {len(each.get("content") or each["tokens"]) for each in logprobs} == {400}
    assert psutil.Process().memory_info().rss - before < 300 << 20  # with the client, which is in this process
