from __future__ import annotations

from typing import Any, cast

import httpx
import openai as sdk
import pytest

from gateway.server.request import HttpRequest, while_connected
from gateway.server.streams.waits import ClientDisconnected
from tests.support.server import Running

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


class Disconnected:
    """A request whose client has disconnected."""

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.disconnect"}


async def test_while_connected_starts_no_work_after_a_disconnect() -> None:
    started = False

    async def work() -> None:
        nonlocal started
        started = True

    with pytest.raises(ClientDisconnected):
        await while_connected(cast(HttpRequest, Disconnected()), work())
    assert not started


def test_every_response_has_a_unique_request_id(http: httpx.Client) -> None:
    responses = [
        http.get("/healthz"),
        http.get("/nowhere"),
        http.get(PATH),
        http.post(PATH, content=b"{"),
        http.post(PATH, json=CHAT),
        http.post(PATH, json={**CHAT, "stream": True}),
        http.post(PATH, content=b" " * 100_001),
    ]
    ids = [response.headers["x-request-id"] for response in responses]
    assert len(set(ids)) == len(ids) and all(id.startswith("req_") for id in ids)
    assert responses[4].json()["id"] == ids[4].replace("req_", "chatcmpl-")


def test_sdk_error_has_the_request_id(server: Running) -> None:
    with server.openai() as openai, pytest.raises(sdk.NotFoundError) as caught:
        openai.chat.completions.create(**{**CHAT, "model": "other"})
    assert caught.value.request_id is not None and caught.value.request_id.startswith("req_")
