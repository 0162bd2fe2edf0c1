"""The identity of a client: from the key's name, else from what the client shows."""

from __future__ import annotations

from typing import Any, cast

import pytest
from litestar.types import Scope

from gateway.config.tables import ServerConfig
from gateway.engines.base import Prepared
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.generation import Generation
from gateway.server.identity import client_of
from tests.support.server import config_of, scripted, serving

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def client(owner: str = "", host: str | None = "127.0.0.1", **headers: str) -> str:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    peer = None if host is None else (host, 50_000)
    return client_of(cast(Scope, {"client": peer, "headers": pairs, "state": {"owner": owner}}))


def test_key_decides_whatever_the_client_shows() -> None:
    anna = client("anna", authorization="Bearer a", user_agent="one")
    assert anna == client("anna", "10.0.0.7", user_agent="two") == client("anna")
    assert anna != client("bert", authorization="Bearer a", user_agent="one")


def test_without_keys_each_shown_value_makes_another_client() -> None:
    shown = {"authorization": "Bearer a", "x_api_key": "b", "user_agent": "c", "origin": "https://d"}
    clients = {client(**shown), client(host="10.0.0.7", **shown), client(host=None)}
    clients |= {client(**{**shown, name: "other"}) for name in shown}
    assert len(clients) == 7
    assert client(**shown) == client(accept="text/plain", **shown)


def test_identity_is_short_and_hides_the_key() -> None:
    found = client(authorization="Bearer " + "k" * 50_000, user_agent="\xff\0")
    assert len(found) == 16 and set(found) <= set("0123456789abcdef")


def test_identity_is_kept_for_the_whole_request() -> None:
    scope = cast(Scope, {"client": None, "headers": [(b"user-agent", b"one")], "state": {}})
    first = client_of(scope)
    scope["headers"] = []
    assert client_of(scope) == first


class Recorder(ScriptedEngine):
    """The scripted engine. It also records the client of each request."""

    def __init__(self) -> None:
        super().__init__("m", scripted("Hello."))
        self.clients: list[str] = []

    async def prepare(self, generation: Generation) -> Prepared:
        self.clients.append(generation.client)
        return await super().prepare(generation)


@pytest.mark.parametrize(("api_keys", "distinct"), [({}, 3), ({"anna": "sk-anna"}, 1)], ids=["no_keys", "one_key"])
def test_engine_gets_the_client_of_each_request(api_keys: dict[str, str], distinct: int) -> None:
    engine = Recorder()
    config = config_of({"m": scripted("Hello.")}, ServerConfig(api_keys=api_keys))
    with serving(config, {"m": engine}, loaded=False) as running:
        running.wait_until_tried()
        with running.http(headers={"authorization": "Bearer sk-anna"}) as http:
            for agent in ("one", "two", "three", "one"):
                reply = http.post("/v1/chat/completions", json=CHAT, headers={"user-agent": agent})
                assert reply.status_code == 200, reply.text
    assert len(set(engine.clients)) == distinct and engine.clients[0] == engine.clients[3]
