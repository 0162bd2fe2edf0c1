"""A reply that is not streamed, whose server breaks in the middle: its client has nothing yet, so another answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.engines.upstream.engine import UpstreamEngine
from gateway.engines.upstream.targets import health
from tests.support.hostile import CHAT, Hostile, chunk, hostile, post, stream, wait_until_closed
from tests.support.server import Running, config_of, scripted, serving
from tests.system.targets.backends import targets_of
from tests.system.targets.bad_servers import BAD_LATER, chats_of, misbehave

GOOD = stream(*(chunk(content="word ") for _ in range(100)), chunk("stop"))
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": {**CHAT, "max_tokens": 9999},
    "/api/chat": {**CHAT, "stream": False},
}


class Pair:
    """A gateway before a bad server, which gets the requests while it is up, and a good one."""

    def __init__(self, gateway: Running, bad: Hostile, good: Hostile) -> None:
        self.gateway, self.bad, self.good = gateway, bad, good
        engine = gateway.app.state.router.lanes["m"].engine
        assert isinstance(engine, UpstreamEngine)
        self.engine = engine
        engine.targets[1].running = 1


@pytest.fixture(autouse=True)
def without_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is down stays so, however slow the machine is."""
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 1e6)
    monkeypatch.setattr(health, "MOST_PAUSE_S", 1e6)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with hostile() as bad, hostile() as good:
        misbehave(bad, BAD_LATER["closes_after_content"])  # before the first probe
        misbehave(good, GOOD)
        urls = [f"http://127.0.0.1:{server.port}/v1" for server in (bad, good)]
        models = {
            "m": targets_of(*urls),
            "with-fallback": targets_of(*urls, fallback="local"),
            "local": scripted("From the fallback."),
        }
        with serving(config_of(models)) as gateway:
            yield Pair(gateway, bad, good)


@pytest.mark.parametrize(
    ("fault", "path"),
    [*zip(("closes_after_content", "garbage_after_content", "error_after_content"), PATHS, strict=True)],
)
def test_whole_reply_that_breaks_is_answered_by_another_server(pair: Pair, fault: str, path: str) -> None:
    misbehave(pair.bad, BAD_LATER[fault])
    with pair.gateway.http(verify=False) as http:
        answer = http.post(path, json={"model": "m", "max_tokens": 9999, **PATHS[path]})
        live = http.get("/gateway/live").json()["answers"]
    assert answer.status_code == 200 and answer.text.count("word ") == 100 and "Half" not in answer.text
    assert answer.headers["x-gateway-route"] == f"127.0.0.1:{pair.good.port};reason=failover;attempts=2"
    assert (chats_of(pair.bad), chats_of(pair.good)) == (1, 1)
    assert [(record["completion_tokens"], record["status"]) for record in live] == [(100, 200)]
    wait_until_closed(pair.bad)


def test_each_prompt_of_a_list_moves_on_alone(pair: Pair) -> None:
    with pair.gateway.http(verify=False) as http:
        body = {"model": "m", "prompt": ["one", "two"], "max_tokens": 9999}
        found = http.post("/v1/completions", json=body).json()
        assert [choice["text"].count("word ") for choice in found["choices"]] == [100, 100]
        assert found["usage"]["completion_tokens"] == 200
        live = http.get("/gateway/live").json()["answers"]
    assert sorted(record["attempts"] for record in live) == [1, 2]
    assert (chats_of(pair.bad), chats_of(pair.good)) == (1, 2)


@pytest.mark.parametrize("headers", [{}, {"x-max-ttft-ms": "60000"}])
def test_one_error_or_the_answer_of_the_fallback_if_all_break(pair: Pair, headers: dict[str, str]) -> None:
    misbehave(pair.good, BAD_LATER["closes_after_content"])
    status, body = post(pair.gateway, "/v1/chat/completions", CHAT, **headers)
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_failed")
    assert (chats_of(pair.bad), chats_of(pair.good)) == (1, 1)
    with pair.gateway.http(verify=False) as http:
        answer = http.post("/v1/chat/completions", json={"model": "with-fallback", **CHAT}, headers=headers)
    assert answer.json()["choices"][0]["message"]["content"] == "From the fallback."
    assert answer.headers["x-gateway-fallback"] == "local;cause=upstream_failed"


def test_deadline_counts_from_the_first_server(pair: Pair) -> None:
    misbehave(pair.good, BAD_LATER["hangs_after_content"])
    status, body = post(pair.gateway, "/v1/chat/completions", CHAT, **{"x-request-timeout-ms": "300"})
    assert (status, json.loads(body)["error"]["code"]) == (504, "deadline_exceeded")
    wait_until_closed(pair.good)
