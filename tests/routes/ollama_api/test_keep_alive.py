"""Ollama's `keep_alive`: every form of it, and what it does to a model."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from ollama import Client

from gateway.errors import InvalidRequest
from gateway.routes.ollama_api.keep_alive import keep_alive_s
from gateway.routes.ollama_api.models import FOREVER
from tests.support.routing import model
from tests.support.server import Running, config_of, serving, wait_until


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    models = {
        "a": model("fine", load="demand"),
        "slow": model("fine", load="demand", load_s=0.1),
        "endless": model("fine", load="demand", load_s=3600.0),
        "vectors": model(kind="encoder", load="demand", load_s=0.1),
        "pinned": model("fine", pinned=True),
    }
    with serving(config_of(models), loaded=False) as running:
        yield running


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client
        client.post("/v1/models/a/unload")


@pytest.fixture
def ollama(server: Running) -> Iterator[Client]:
    with Client(host=server.url) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/chat", {"model": "slow", "messages": [{"role": "user", "content": "x"}], "stream": False}),
        ("/api/embed", {"model": "vectors", "input": "x"}),
    ],
)
def test_load_duration_is_that_of_the_load_that_the_request_waited_for(
    http: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    first, second = (http.post(path, json=body).json() for _ in range(2))
    assert 0 < first["load_duration"] <= first["total_duration"] and second["load_duration"] == 0
    if path == "/api/chat":
        spent = first["load_duration"] + first["prompt_eval_duration"] + first["eval_duration"]
        assert spent <= first["total_duration"] + 3  # each is rounded


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        ("0", 0.0),
        (-1, -1.0),
        ("-1m", -1.0),
        (-0.5, -1.0),
        (90, 90.0),
        (1.5, 1.5),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1.5h", 5400.0),
        ("+2s", 2.0),
        ("300ms", 0.3),
        ("1e3s", None),
        ("\u0663m", None),
        ("24h", 86400.0),
        (1e30, -1.0),
    ],
)
def test_every_form_of_keep_alive(value: float | str | None, seconds: float | None) -> None:
    if value is not None and seconds is None:
        with pytest.raises(InvalidRequest):
            keep_alive_s(value)
    else:
        assert keep_alive_s(value) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("value", ["", "5", "m", "5 m", "5m ", "forever", "--1s", "5x", "1m1", "1s" * 51])
def test_other_texts_are_refused_with_the_field(http: httpx.Client, value: str) -> None:
    reply = http.post("/api/generate", json={"model": "a", "prompt": "x", "keep_alive": value})
    assert reply.status_code == 400 and "'keep_alive' must be a number of seconds" in reply.json()["error"]


def loaded(ollama: Client) -> dict[str, datetime | str]:
    return {row.model or "": row.expires_at or "" for row in ollama.ps().models}


def test_request_without_a_prompt_loads_and_with_keep_alive_0_unloads(http: httpx.Client, ollama: Client) -> None:
    assert "a:latest" not in loaded(ollama)
    assert ollama.generate("a", keep_alive="5m").done_reason == "load"
    left_s = (datetime.fromisoformat(str(loaded(ollama)["a:latest"])) - datetime.now(UTC)).total_seconds()
    assert 200 < left_s <= 300
    assert ollama.chat("a", [], keep_alive=0).done_reason == "unload"
    wait_until(lambda: "a:latest" not in loaded(ollama), "a stays loaded")
    assert ollama.generate("a", "x").response == "fine"
    rows = {row["model"]: row for row in http.get("/api/ps").json()["models"]}
    assert rows["a:latest"]["expires_at"] == FOREVER  # the time of the request before is that of an earlier load


@pytest.mark.parametrize("path", [b"/api/generate", b"/v1/models/endless/load"])
def test_client_that_leaves_waits_no_longer_for_the_load(server: Running, path: bytes) -> None:
    """Else models of others were unloaded for it."""
    claim = server.app.state.router.lanes["endless"].claim
    body = b'{"model": "endless"}'
    with server.connect() as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n%s" % (path, body))
        wait_until(lambda: claim.is_wanted, "the request does not wait for the load")
    wait_until(lambda: not claim.is_wanted, "the load is still wanted")


@pytest.mark.parametrize("path", ["chat", "generate"])
def test_answer_with_keep_alive_0_unloads_the_model_after_it(http: httpx.Client, ollama: Client, path: str) -> None:
    prompt = {"messages": [{"role": "user", "content": "x"}]} if path == "chat" else {"prompt": "x"}
    reply = http.post(f"/api/{path}", json={"model": "a", **prompt, "keep_alive": 0})
    assert reply.status_code == 200
    wait_until(lambda: "a:latest" not in loaded(ollama), "a stays loaded")


def test_pinned_model_stays(http: httpx.Client, ollama: Client) -> None:
    assert ollama.generate("pinned", keep_alive=0).done_reason == "unload"
    ollama.generate("a", keep_alive=0, prompt="x")
    wait_until(lambda: "a:latest" not in loaded(ollama), "a stays loaded")
    assert "pinned:latest" in loaded(ollama)
