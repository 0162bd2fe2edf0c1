"""One client with many or large requests: another client is answered meanwhile, and gets no error.

A real gateway, a real worker and a tiny model. Each crowd has work for at least 10,000 device calls, and the other
client is answered while the crowd still runs, so no test depends on the speed of the machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway.config.tables import LocalModel, ServerConfig
from gateway.lanes.lane import Lane
from tests.support.server import PATIENCE_S, Running, config_of, serving, wait_until
from tests.support.token_loop_fixtures import random_ids

KEYS = {"anna": "sk-anna", "bert": "sk-bert", "carl": "sk-carl"}
LONG: dict[str, Any] = {"prompt": random_ids(20, 1), "max_tokens": 450, "ignore_eos": True}
ONE_TOKEN: dict[str, Any] = {"model": "m", "prompt": random_ids(20, 2), "max_tokens": 1}
CHAT = {
    "path": "/v1/chat/completions",
    "messages": [{"role": "user", "content": "x"}],
    "max_tokens": 400,
    "ignore_eos": True,
}
PREDICTION = {"type": "content", "content": "the quick brown fox " * 5_000}  # 100 KB


def serve(tiny: Path, **server: Any) -> Iterator[Running]:
    with serving(config_of({"m": LocalModel(path=str(tiny), threads=1)}, ServerConfig(**server))) as running:
        yield running


@pytest.fixture(scope="module")
def keyed(tiny: Path) -> Iterator[Running]:
    yield from serve(tiny, api_keys=KEYS)


@pytest.fixture(scope="module")
def default(tiny: Path) -> Iterator[Running]:
    """Without keys, as in the default configuration."""
    yield from serve(tiny)


def lane_of(server: Running) -> Lane:
    return server.app.state.router.lanes["m"]  # type: ignore[no-any-return]


def client(server: Running, key: str, agent: str = "test") -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer sk-{key}", "user-agent": agent}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=PATIENCE_S, limits=httpx.Limits())


@asynccontextmanager
async def crowd(
    server: Running, bodies: list[dict[str, Any]], headers: Callable[[int], dict[str, str]] = lambda number: {}
) -> AsyncIterator[list[asyncio.Task[httpx.Response]]]:
    """Send all `bodies` at once as one client, and wait until a device works for them. Cancelled at the end."""
    async with client(server, "anna", "crowd") as http:
        sent = [
            asyncio.create_task(http.post(body.pop("path", "/v1/completions"), json=body, headers=headers(number)))
            for number, body in enumerate({"model": "m", **body} for body in bodies)
        ]
        lane = lane_of(server)
        await asyncio.to_thread(
            wait_until, lambda: lane.queue.running + lane.queue.waiting >= min(len(bodies), 3), "the crowd is not in"
        )
        try:
            yield sent
        finally:
            for task in sent:
                task.cancel()
            await asyncio.gather(*sent, return_exceptions=True)
    await asyncio.to_thread(wait_until, lambda: not lane.queue.running + lane.queue.waiting, "the crowd is left")


CROWDS: dict[str, list[dict[str, Any]]] = {
    "128_choices": [{**LONG, "n": 128}],
    "128_choices_of_chat": [{**CHAT, "n": 128}],
    "128_choices_with_prediction": [{**CHAT, "n": 128, "prediction": PREDICTION}],
    "best_of_128": [{**LONG, "best_of": 128}],
    "128_prompts": [{**LONG, "prompt": [random_ids(20, seed) for seed in range(128)]}],
    "36_long_answers": [LONG] * 36,
    "36_requests_of_128_choices": [{**LONG, "n": 128}] * 36,
    "prompts_as_long_as_the_context": [
        {"prompt": [random_ids(500, 100 * part + seed) for seed in range(100)], "max_tokens": 8} for part in range(36)
    ],
}


@pytest.mark.parametrize("bodies", CROWDS.values(), ids=CROWDS.keys())
async def test_other_keys_are_answered_while_a_crowd_of_one_key_runs(keyed: Running, bodies: list[dict]) -> None:
    async with crowd(keyed, bodies) as sent, client(keyed, "bert") as bert, client(keyed, "carl") as carl:
        for _ in range(5):
            replies = await asyncio.gather(*(http.post("/v1/completions", json=ONE_TOKEN) for http in (bert, carl)))
            assert [reply.status_code for reply in replies] == [200, 200], [reply.text for reply in replies]
        assert not all(task.done() for task in sent)


async def test_user_agents_do_not_split_a_key(keyed: Running) -> None:
    """36 requests of one key, each with another `User-Agent`, have one share of the queue."""
    lane = lane_of(keyed)
    async with crowd(keyed, [LONG] * 44, lambda number: {"user-agent": f"program {number}"}):
        await asyncio.to_thread(wait_until, lambda: lane.queue.waiting == 32, "the queue is not full")
        assert {ticket.client for ticket in lane.queue._running} == {lane.queue._running[0].client}
        async with client(keyed, "bert") as bert:
            assert (await bert.post("/v1/completions", json=ONE_TOKEN)).status_code == 200


@pytest.mark.parametrize("shown", [{}, {"authorization": "Bearer other"}], ids=["user_agent", "authorization"])
async def test_without_keys_other_programs_are_answered(default: Running, shown: dict[str, str]) -> None:
    agent = "crowd" if shown else "another program"
    async with crowd(default, [LONG] * 36) as sent, client(default, "anna", agent) as other:
        for _ in range(5):
            reply = await other.post("/v1/completions", json=ONE_TOKEN, headers=shown)
            assert reply.status_code == 200, reply.text
        assert not all(task.done() for task in sent)


async def test_long_requests_of_two_clients_alternate(keyed: Running) -> None:
    """A client with one long answer is not held up by 36 of another: it ends before most of them."""
    async with crowd(keyed, [LONG] * 36) as sent, client(keyed, "bert") as bert:
        reply = await bert.post("/v1/completions", json={"model": "m", **LONG})
        assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] == 450
        assert sum(task.done() for task in sent) < 18


async def test_background_crowd_does_not_delay_other_clients(keyed: Running) -> None:
    headers = {"x-gateway-priority": "background"}
    bodies = [{**LONG, "n": 128}] * 36
    async with crowd(keyed, bodies, lambda number: headers) as sent, client(keyed, "bert") as bert:
        replies = [await bert.post("/v1/completions", json=ONE_TOKEN) for _ in range(3)]
        background = await bert.post("/v1/completions", json=ONE_TOKEN, headers=headers)
        assert [reply.status_code for reply in (*replies, background)] == [200] * 4
        assert not all(task.done() for task in sent)


async def test_cancelled_crowds_leave_nothing(keyed: Running) -> None:
    """A client that sends 36 requests and leaves, ten times in a row."""
    for _ in range(10):
        async with crowd(keyed, [{**LONG, "n": 16}] * 36), client(keyed, "bert") as bert:
            assert (await bert.post("/v1/completions", json=ONE_TOKEN)).status_code == 200
    queue = lane_of(keyed).queue
    assert (queue.running, queue.waiting) == (0, 0)
    assert not queue._waiting[False]._clients and not queue._waiting[True]._clients


async def test_evicted_requests_end_once_with_429(keyed: Running) -> None:
    """Requests that lost their position in the queue get one whole error with the seconds to wait."""
    async with crowd(keyed, [{**LONG, "stream": True}] * 36) as sent:
        lane = lane_of(keyed)
        await asyncio.to_thread(wait_until, lambda: lane.queue.waiting == 32, "the queue is not full")
        async with client(keyed, "bert") as bert, client(keyed, "carl") as carl:
            others = [asyncio.create_task(http.post("/v1/completions", json={"model": "m", **LONG}))
                      for http in (bert, carl) for _ in range(6)]  # fmt: skip
            replies = await asyncio.gather(*others)
        assert {reply.status_code for reply in replies} == {200}
        refused = [task.result() for task in sent if task.done() and task.result().status_code != 200]
    assert refused and all(reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1 for reply in refused)
    assert {reply.json()["error"]["code"] for reply in refused} == {"rate_limit_exceeded"}
    assert all("another client needed a position" in reply.json()["error"]["message"] for reply in refused)


async def test_128_choices_with_prediction_take_little_memory(keyed: Running) -> None:
    """The index of the prediction was made 128 times: 0.8 to 1.0 GB in the worker."""
    engine = lane_of(keyed).engine
    worker = psutil.Process(engine.status.pid)
    async with client(keyed, "bert") as bert:
        await bert.post("/v1/completions", json=ONE_TOKEN)
        before = worker.memory_info().rss, psutil.Process().memory_info().rss
        async with crowd(keyed, [{**CHAT, "n": 128, "prediction": PREDICTION}]):
            assert (await bert.post("/v1/completions", json=ONE_TOKEN)).status_code == 200
            after = worker.memory_info().rss, psutil.Process().memory_info().rss
    assert after[0] - before[0] < 64 << 20
    assert after[1] - before[1] < 64 << 20
