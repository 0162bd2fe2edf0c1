"""POST /gateway/stop: only with the token, only from this machine."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from gateway.config.tables import ServerConfig
from tests.support.server import Running, config_of, error_of, scripted, serving

KEYS = ServerConfig(api_keys={"anna": "sk-anna"})


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(config_of({"m": scripted("a")}, KEYS), stop_token="t-1") as running:
        yield running


@pytest.mark.parametrize("token", ["", "t-2", "T-1", "t-1 x", "ü"])
def test_wrong_token_stops_nothing(server: Running, token: str) -> None:
    with server.http() as http:
        reply = http.post("/gateway/stop", headers={"x-stop-token": token.encode(), "authorization": "Bearer sk-anna"})
        assert reply.status_code == 401
        assert "npu-gateway stop" in error_of(reply)["message"]
        assert http.get("/healthz").status_code == 200


def test_gateway_without_a_token_cannot_be_stopped() -> None:
    with serving(config_of({"m": scripted("a")})) as running, running.http() as http:
        assert http.post("/gateway/stop", headers={"x-stop-token": ""}).status_code == 401
        assert not running.server.should_exit


def test_page_of_another_origin_cannot_stop_the_gateway(server: Running) -> None:
    with server.http() as http:
        reply = http.post("/gateway/stop", headers={"x-stop-token": "t-1", "origin": "http://evil.example"})
        assert reply.status_code == 403 and not server.server.should_exit


def test_token_stops_the_gateway_without_a_key() -> None:
    with serving(config_of({"m": scripted("a")}, KEYS), stop_token="t-1") as running:
        with running.http() as http:
            reply = http.post("/gateway/stop", headers={"x-stop-token": "t-1"})
        assert (reply.status_code, reply.json()) == (200, {"requests": 0, "grace_s": 10.0})
        assert running.server.should_exit


async def test_other_machines_cannot_stop_the_gateway() -> None:
    from gateway.app import create_app

    app = create_app(config_of({"m": scripted("a")}), stop_token="t-1")
    transport = httpx.ASGITransport(app, client=("192.168.0.9", 5000))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        reply = await http.post("/gateway/stop", headers={"x-stop-token": "t-1"})
    assert reply.status_code == 403 and "on the gateway's machine" in error_of(reply)["message"]
