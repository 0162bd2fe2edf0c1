"""The path of a request through a Ray cluster, without Ray: an ingress, and replicas in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import httpx
import pytest
from litestar import Litestar

from gateway.app import create_app
from gateway.commands.ray.call import Call
from gateway.commands.ray.ingress import Ingress
from gateway.commands.ray.replica import Held, Messages, Replica
from gateway.config.tables import Config, ServerConfig
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.engines.upstream.prefixes import blocks_of
from gateway.generation import Text
from gateway.lanes.router import Router
from tests.support.server import PATIENCE_S, config_of, error_of, scripted

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
STREAM = {**CHAT, "stream": True}
ANSWER = "one two three four"


class Lost(Exception):
    """The replica is no longer there."""


class Cluster:
    """An ingress with one replica. `losses`: after how many items the replica is lost, for one call after the other."""

    def __init__(self, app: Litestar, config: Config, losses: tuple[int | None, ...] = ()) -> None:
        self.app = app
        self.calls: list[Call] = []
        self._losses = list(losses)
        self.replica = Replica(app)
        self.ingress = Ingress(config, self._forward, (Lost,))

    async def _forward(self, call: Call) -> AsyncGenerator[Messages, None]:
        self.calls.append(call)
        left = self._losses.pop(0) if self._losses else None
        async with aclosing(self.replica.forward(call)) as answer:
            async for messages in answer:
                if left == 0:
                    raise Lost("killed")
                yield messages
                left = None if left is None else left - 1
                if left == 0:  # without a wait for the next one
                    raise Lost("killed")

    def http(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(self.ingress, **options), base_url="http://localhost", timeout=PATIENCE_S
        )


@asynccontextmanager
async def cluster(
    *losses: int | None,
    server: ServerConfig | None = None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    **script: Any,
) -> AsyncIterator[Cluster]:
    model = scripted(ANSWER, **script)
    config = config_of({"m": model}, server)
    app = create_app(config, {"m": ScriptedEngine("m", model, sleep=sleep)})
    async with app.lifespan():
        await app.state.router.tried()
        yield Cluster(app, config, losses)


async def test_answer_is_that_of_the_gateway() -> None:
    async with cluster() as ray, ray.http() as http:
        reply = await http.post("/v1/chat/completions", json=CHAT)
        assert reply.json()["choices"][0]["message"]["content"] == ANSWER
        assert reply.headers["x-request-id"].startswith("req_")
        assert (await http.get("/readyz")).json()["ready"]
        assert (await http.head("/readyz")).status_code == 200


async def test_stream_comes_token_by_token() -> None:
    first = asyncio.Event()

    async def sleep(seconds: float) -> None:
        if seconds:  # not the prefill
            await first.wait()

    async with cluster(token_s=1.0, sleep=sleep) as ray:
        parts = await sent(ray.ingress, STREAM, first)
        texts = [content for part in parts for content in contents(part)]
        assert "".join(texts) == ANSWER
        assert len([part for part in parts if contents(part)]) > 1
        assert parts[-1] == b""


@pytest.mark.parametrize("losses", [(0,), (0, 0)])
async def test_replica_lost_before_the_answer_is_replaced(losses: tuple[int, ...]) -> None:
    async with cluster(*losses) as ray, ray.http() as http:
        reply = await http.post("/v1/chat/completions", json=STREAM)
        assert reply.status_code == 200 and reply.text.endswith("data: [DONE]\n\n")
        assert len(ray.calls) == len(losses) + 1


async def test_replica_lost_between_the_head_and_the_content_is_replaced() -> None:
    async with cluster() as ray, ray.http() as http:
        alive = ray.ingress._forward
        heads = [{"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"of the lost one")]}]

        async def dies_once(call: Call) -> AsyncGenerator[Messages, None]:
            if heads:
                yield [heads.pop()]
                raise Lost("killed")
            async for messages in alive(call):
                yield messages

        ray.ingress._forward = dies_once
        reply = await http.post("/v1/chat/completions", json=STREAM)
        assert reply.status_code == 200 and reply.text.endswith("data: [DONE]\n\n")
        assert reply.headers["x-request-id"].startswith("req_")


async def test_every_replica_lost_is_503() -> None:
    async with cluster(0, 0, 0) as ray, ray.http() as http:
        reply = await http.post("/v1/chat/completions", json=CHAT)
        assert reply.status_code == 503 and reply.headers["retry-after"] == "1"
        assert error_of(reply)["code"] == "service_unavailable"


@pytest.mark.parametrize(
    ("path", "body", "of_error"),
    [
        ("/v1/chat/completions", STREAM, lambda last: last["error"]["message"]),
        ("/v1/messages", {**STREAM, "max_tokens": 9}, lambda last: last["error"]["message"]),
        ("/v1/responses", {"model": "m", "input": "Hi", "stream": True}, lambda last: last["error"]["message"]),
        ("/api/chat", STREAM, lambda last: last["error"]),
    ],
)
async def test_replica_lost_in_a_stream_is_an_error_of_its_api(
    path: str, body: dict[str, Any], of_error: Callable[[Any], str]
) -> None:
    async with cluster(1, token_s=3600.0) as ray, ray.http() as http:
        reply = await http.post(path, json=body)
        assert reply.status_code == 200
        last = reply.text.strip().splitlines()[-1].removeprefix("data: ")
        assert "was lost" in of_error(json.loads(last)) and "one" in reply.text and "two" not in reply.text
        assert len(ray.calls) == 1


async def test_replica_lost_in_a_body_breaks_the_connection() -> None:
    async with cluster() as ray:
        head = {"type": "http.response.start", "status": 200, "headers": []}

        async def dies(call: Call) -> AsyncGenerator[Messages, None]:
            yield [head, {"type": "http.response.body", "body": b"{", "more_body": True}]
            raise Lost("killed")

        ray.ingress._forward = dies
        with pytest.raises(Exception, match="was lost"):
            await sent(ray.ingress, CHAT)


async def test_disconnect_ends_the_request_of_the_replica() -> None:
    async with cluster(token_s=3600.0) as ray:
        first = asyncio.Event()
        task = asyncio.create_task(sent(ray.ingress, STREAM, first))
        await asyncio.wait_for(first.wait(), PATIENCE_S)
        router: Router = ray.app.state.router
        assert router.requests == 1
        task.cancel()  # as Ray does
        await asyncio.wait_for(ray.replica.ended(), PATIENCE_S)
        assert router.requests == 0


async def test_gateway_can_be_left_in_another_task() -> None:
    app = create_app(config_of({"m": scripted(ANSWER)}))
    held = Held(app.lifespan())  # it has a cancel scope, which one task must enter and leave
    await asyncio.create_task(held.enter())
    router: Router = app.state.router
    assert not router.is_closed
    await asyncio.create_task(held.leave())
    assert router.is_closed


async def test_failure_to_start_is_that_of_the_replica() -> None:
    @asynccontextmanager
    async def failing() -> AsyncIterator[None]:
        raise ValueError("no model")
        yield

    held = Held(failing())
    with pytest.raises(ValueError, match="no model"):
        await held.enter()
    await held.leave()


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_large_body_is_refused_before_a_replica_gets_it(is_chunked: bool) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x" * 500

    async with cluster(server=ServerConfig(max_body_bytes=1000)) as ray, ray.http() as http:
        reply = await http.post("/v1/chat/completions", content=parts() if is_chunked else b"x" * 2000)
        assert reply.status_code == 413 and not ray.calls


async def test_bodies_of_all_requests_have_a_limit() -> None:
    async with cluster(server=ServerConfig(max_body_bytes=1000)) as ray, ray.http() as http:
        ray.ingress._held = 16_000
        assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 503
        assert ray.ingress._held == 16_000


async def test_keys_are_those_of_the_gateway() -> None:
    async with cluster(server=ServerConfig(api_keys={"a": "secret"})) as ray, ray.http() as http:
        assert (await http.get("/v1/models")).status_code == 401
        assert (await http.get("/v1/models", headers={"Authorization": "Bearer secret"})).status_code == 200


@pytest.mark.parametrize(
    ("server", "status"),
    [(ServerConfig(), 403), (ServerConfig(insecure=True), 200), (ServerConfig(api_keys={"a": "secret"}), 401)],
)
async def test_another_machine_needs_a_key(server: ServerConfig, status: int) -> None:
    async with cluster(server=server) as ray, ray.http(client=("192.0.2.1", 1)) as http:
        assert (await http.get("/v1/models")).status_code == status


async def test_application_can_have_a_prefix() -> None:
    async with cluster() as ray, ray.http(root_path="/llm") as http:
        reply = await http.get("/llm/v1/models")
        assert [model["id"] for model in reply.json()["data"]] == ["m"]


async def test_bodies_of_a_conversation_begin_alike() -> None:
    async with cluster() as ray, ray.http() as http:
        await http.post("/v1/chat/completions", json=CHAT)
        assert ray.calls[0].prompt.startswith('{"model":"m","messages":[')


def test_start_of_a_large_body_has_all_blocks_by_which_a_replica_is_chosen() -> None:
    body = "".join(map(str, range(100_000)))
    prompt = Call({}, body.encode()).prompt
    assert len(prompt) < len(body) / 3 and blocks_of(Text(prompt)) == blocks_of(Text(body))


async def sent(app: Ingress, body: dict[str, Any], first: asyncio.Event | None = None) -> list[bytes]:
    """The parts of the answer's body, as they are sent. `first`: set with the first text."""
    parts: list[bytes] = []
    requests = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        return requests.pop()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            parts.append(message.get("body", b""))
            if first is not None and contents(parts[-1]):
                first.set()

    path = "/v1/chat/completions"
    scope = {"type": "http", "http_version": "1.1", "method": "POST", "scheme": "http", "path": path, "headers": []}
    await app({**scope, "query_string": b"", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2)}, receive, send)
    return parts


def contents(part: bytes) -> list[str]:
    lines = [line.removeprefix("data: ") for line in part.decode().splitlines() if line.startswith("data: {")]
    return [
        text for line in lines for choice in json.loads(line)["choices"] if (text := choice["delta"].get("content"))
    ]
