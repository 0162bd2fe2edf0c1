"""Limits of API keys over a real server: every API, and clients that leave, fail or want too much."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import httpx
import pytest
from openai import OpenAI, RateLimitError

from gateway.config.tables import KeyLimits, LimitsConfig, ScriptedModel, ServerConfig
from gateway.lanes.limits.counters import Levels, MemoryCounters
from gateway.lanes.limits.limits import has_begun
from gateway.monitoring.observers import AnswerRecord
from tests.support.manual_clock import ManualClock
from tests.support.server import PATIENCE_S, Running, config_of, error_of, script_of, scripted, serving, wait_until

ODD = "näm e\"'\\ 東京"  # the name of a key
KEYS = {"rated": "sk-rated", ODD: "sk-odd", "narrow": "sk-narrow", "free": "sk-free"}
ENDLESS: dict[str, Any] = {"repeat": True, "token_s": 0.01, "context_length": 100_000}
MODELS = {
    "m": ScriptedModel(aliases=("gpt-4o-mini",), script=script_of(replies=["Yes."], context_length=4096)),
    "endless": scripted("word", **ENDLESS),
    "one": ScriptedModel(max_sequences=1, queue=1, script=script_of(replies=["word"], **ENDLESS)),
    "breaks": scripted("one two three", faults=[{"after": 2, "error": "EngineFailed", "message": "no device"}]),
    "vectors": scripted(kind="encoder", context_length=64),
    "scorer": scripted(kind="cross-encoder", context_length=64),
}
LIMITS = LimitsConfig(
    requests_per_minute=100,
    tokens_per_minute=5000,
    keys={
        "narrow": KeyLimits(models=("m",), requests_per_minute="unlimited", concurrent_requests=1),
        "free": KeyLimits(requests_per_minute="unlimited", tokens_per_minute="unlimited"),
    },
)
USER = [{"role": "user", "content": "Hello there"}]
CHAT: dict[str, Any] = {"model": "m", "messages": USER, "max_tokens": 10}
APIS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "m", "prompt": ["a", "b", "c"], "max_tokens": 5, "n": 2},
    "/v1/responses": {"model": "m", "input": "Hello"},
    "/v1/messages": CHAT,
    "/v1/embeddings": {"model": "vectors", "input": ["a b", "c"]},
    "/v1/rerank": {"model": "scorer", "query": "a", "documents": ["b", "c"]},
    "/api/chat": {"model": "m", "messages": USER},
    "/api/generate": {"model": "m", "prompt": "Hello"},
    "/api/embed": {"model": "vectors", "input": "a b"},
}


class Gateway:
    """A server whose limits have a clock of the test."""

    def __init__(self, server: Running, clock: ManualClock) -> None:
        self.server, self.clock = server, clock

    def http(self, name: str = "rated") -> httpx.Client:
        return self.server.http(headers={"authorization": f"Bearer {KEYS[name]}"})

    def levels(self, name: str = "rated") -> Levels:
        limits = self.server.app.state.limits
        return limits.counters.levels(name, limits.quota(name))  # type: ignore[no-any-return]

    def wait_until_given_back(self, name: str = "rated") -> None:
        wait_until(lambda: self.levels(name).running == 0, "a request has not given back what it took")


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    clock = ManualClock()
    config = config_of(MODELS, ServerConfig(api_keys=KEYS), limits=LIMITS)
    with serving(config, counters=MemoryCounters(clock)) as server:
        yield Gateway(server, clock)


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    running.clock.now += 1e6  # nothing is used any more
    return running


def http_post(path: str, key: str, body: dict[str, Any]) -> bytes:
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(text)}"
    return head.encode() + b"\r\n\r\n" + text


def limit_headers(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if "ratelimit" in name}


@pytest.mark.parametrize("path", APIS)
@pytest.mark.parametrize("stream", [False, True])
def test_every_api_counts_one_request_and_its_tokens_and_says_what_is_left(
    gateway: Gateway, path: str, stream: bool
) -> None:
    if stream and ("embed" in path or "rerank" in path):
        return
    with gateway.http() as http:
        answer = http.post(path, json={**APIS[path], "stream": stream})
    assert answer.status_code == 200, answer.text
    name = "anthropic-ratelimit-{}-remaining" if path == "/v1/messages" else "x-ratelimit-remaining-{}"
    assert len(limit_headers(answer)) == 6
    assert answer.headers[name.format("requests")] == "99"
    gateway.wait_until_given_back()
    levels = gateway.levels()
    assert levels.requests == 1 and 0 < levels.tokens < 30
    if not stream:
        assert int(answer.headers[name.format("tokens")]) == 5000 - levels.tokens
        used = answer.json().get("usage") or {}
        total = used.get("total_tokens") or used.get("input_tokens", 0) + used.get("output_tokens", 0)
        assert total in (0, levels.tokens)


def test_refusal_says_when_to_come_back_and_then_is_none(gateway: Gateway) -> None:
    with gateway.http(ODD) as http:
        for _ in range(100):
            assert http.get("/v1/models").headers["x-ratelimit-limit-requests"] == "100"  # does not count
        for _ in range(2):  # the first text has more tokens than its bytes show, and is charged for them
            assert http.post("/v1/completions", json={"model": "m", "prompt": "a " * 3000}).is_success
        assert gateway.levels(ODD).tokens > 5000
        refused = http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1000})
        assert error_of(refused)["message"].startswith("The API key " + repr(ODD))
        wait_s = int(refused.headers["retry-after"])
        gateway.clock.now += wait_s - 2
        assert http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1000}).status_code == 429
        gateway.clock.now += 2
        assert http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1000}).status_code == 200


def test_official_sdk_repeats_no_request_that_can_never_run(gateway: Gateway) -> None:
    posts = []
    http = httpx.Client(event_hooks={"request": [posts.append]}, trust_env=False)
    client = OpenAI(base_url=f"{gateway.server.url}/v1", api_key=KEYS["rated"], http_client=http)
    with client, pytest.raises(RateLimitError, match="a retry never succeeds"):
        client.chat.completions.create(**CHAT | {"n": 128, "max_tokens": 4000})
    assert len(posts) == 1 and gateway.levels() == Levels()


@pytest.mark.parametrize("max_tokens", [None, -1])
def test_answer_up_to_the_context_runs_below_a_smaller_limit(gateway: Gateway, max_tokens: int | None) -> None:
    with gateway.http() as http:
        assert http.post("/v1/chat/completions", json=CHAT | {"max_tokens": max_tokens}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/chat/completions", CHAT | {"model": "nothing"}, 404),
        ("/v1/chat/completions", CHAT | {"temperature": "hot"}, 400),
        ("/v1/completions", {"model": "m", "prompt": "word " * 5000}, 400),
        ("/v1/embeddings", {"model": "m", "input": "a"}, 400),
        ("/v1/messages", CHAT | {"messages": []}, 400),
    ],
)
def test_refused_request_counts_nothing_and_has_the_headers(
    gateway: Gateway, path: str, body: dict[str, Any], status: int
) -> None:
    with gateway.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == status and len(limit_headers(answer)) == 6
    assert gateway.levels() == Levels()


def test_failed_request_counts_the_tokens_until_its_failure(gateway: Gateway) -> None:
    with gateway.http() as http:
        for stream in (False, True):
            http.post("/v1/chat/completions", json=CHAT | {"model": "breaks", "max_tokens": 1000, "stream": stream})
    gateway.wait_until_given_back()
    assert gateway.levels() == Levels(requests=2, tokens=2 * (2 + 2))


def test_stream_that_its_client_cuts_gives_back_what_it_did_not_use(gateway: Gateway) -> None:
    body = CHAT | {"model": "endless", "max_tokens": 2000, "stream": True, "n": 2}
    with gateway.http() as http, http.stream("POST", "/v1/chat/completions", json=body) as stream:
        lines = stream.iter_lines()  # httpx closes the stream when this is deleted
        next(lines)
        assert gateway.levels().tokens == 4003
        assert stream.headers["x-ratelimit-remaining-tokens"] == "997"
    gateway.wait_until_given_back()
    assert gateway.levels().requests == 1 and 0 < gateway.levels().tokens < 4000


def test_request_that_finds_a_full_queue_or_leaves_it_has_used_nothing(gateway: Gateway) -> None:
    lane = gateway.server.app.state.router.lanes["one"]
    body = CHAT | {"model": "one", "max_tokens": -1}
    with gateway.http("free") as free, gateway.http() as http, ExitStack() as streams:
        streams.enter_context(free.stream("POST", "/v1/chat/completions", json=body | {"stream": True}))
        with closing(gateway.server.connect()) as leaving:
            leaving.sendall(http_post("/v1/chat/completions", KEYS["rated"], body))
            wait_until(lambda: lane.queue.waiting == 1, "the request does not wait")
            assert gateway.levels() == Levels(requests=1, tokens=3 + 1024, running=1)
            assert http.post("/v1/chat/completions", json=body).status_code == 429  # the queue is full
            assert gateway.levels() == Levels(requests=1, tokens=3 + 1024, running=1)
        gateway.wait_until_given_back()
        assert gateway.levels() == Levels()


def test_concurrent_requests_of_a_key_are_limited_and_freed_by_a_cut(gateway: Gateway) -> None:
    limits = gateway.server.app.state.limits
    limits.apply(LimitsConfig(concurrent_requests=1))
    try:
        with gateway.http() as http, gateway.http(ODD) as other:
            with http.stream(
                "POST", "/v1/chat/completions", json=CHAT | {"model": "endless", "max_tokens": -1, "stream": True}
            ):
                refused = http.post("/v1/messages", json=CHAT)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                assert refused.json()["error"]["type"] == "rate_limit_error"
                assert "is at its limit of 1 request in progress." in refused.json()["error"]["message"]
                assert other.post("/v1/messages", json=CHAT).status_code == 200
            gateway.wait_until_given_back()
            assert http.post("/v1/messages", json=CHAT).status_code == 200
    finally:
        limits.apply(LIMITS)


async def test_crowd_that_leaves_at_any_time_has_used_what_the_records_say(gateway: Gateway) -> None:
    """Requests to all APIs and models; about half of the clients leave after some milliseconds."""
    state, records = gateway.server.app.state, list[AnswerRecord]()
    state.router.observers.add(records.append)
    state.limits.apply(LimitsConfig(requests_per_minute=10**6, tokens_per_minute=10**9))
    try:
        async with httpx.AsyncClient(base_url=gateway.server.url, timeout=PATIENCE_S) as http:

            async def send(number: int, path: str, model: str) -> None:
                body = APIS[path] | {"stream": number % 2 == 0}
                body |= {} if "embed" in path or "rerank" in path else {"model": model, "max_tokens": 40}
                headers = {"authorization": f"Bearer {KEYS['rated']}"}
                with suppress(TimeoutError):
                    async with asyncio.timeout((0.004, 0.02, 0.06, PATIENCE_S)[number % 4]):
                        await http.post(path, json=body, headers=headers)

            requests = enumerate((path, model) for path in APIS for model in (*MODELS, "nothing"))
            await asyncio.gather(*(send(number, path, model) for number, (path, model) in requests))
        await asyncio.to_thread(gateway.wait_until_given_back)
        await asyncio.to_thread(wait_until, lambda: not state.limits._leases, "a request has left something")
        used = [record for record in records if has_begun(record)]
        assert gateway.levels() == Levels(
            requests=len({record.id for record in used}),
            tokens=sum(record.prompt_tokens + record.completion_tokens for record in used),
        )
        assert len(used) > 5
    finally:
        state.limits.apply(LIMITS)


def test_key_sees_and_uses_only_its_models(gateway: Gateway) -> None:
    with gateway.http("narrow") as http:
        assert [card["id"] for card in http.get("/v1/models").json()["data"]] == ["m", "gpt-4o-mini"]
        assert [row["name"] for row in http.get("/api/tags").json()["models"]] == ["m:latest", "gpt-4o-mini:latest"]
        assert {row["name"] for row in http.get("/api/ps").json()["models"]} == {"m:latest"}
        assert http.get("/v1/models/vectors").status_code == 404
        posts = {
            "/v1/chat/completions": CHAT | {"model": "endless"},
            "/v1/messages/count_tokens": CHAT | {"model": "endless"},
            "/v1/embeddings": {"input": "a", "model": "vectors"},
            "/api/show": {"model": "vectors"},
            "/api/chat": {"model": "vectors"},
            "/tokenize": {"content": "a", "model": "endless"},
            "/v1/models/endless/load": {},
            "/v1/models/endless/unload": {},
        }
        answers = {path: http.post(path, json=body) for path, body in posts.items()}
        assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(posts, 404)
        error = error_of(answers["/v1/chat/completions"])
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "model_not_found", "model")
        assert http.post("/v1/chat/completions", json=CHAT | {"model": "gpt-4o-mini"}).status_code == 200
        assert len(http.get("/readyz").json()["models"]) == len(MODELS)  # of the gateway, not of the key
    with gateway.http("free") as http:
        assert len(http.get("/v1/models").json()["data"]) == len(MODELS) + 1
        assert limit_headers(http.post("/v1/chat/completions", json=CHAT)) == {}


def test_live_view_shows_each_key_with_limits(gateway: Gateway) -> None:
    with gateway.http() as http:
        http.post("/v1/chat/completions", json=CHAT)
        keys = {use.pop("key"): use for use in http.get("/gateway/live").json()["keys"]}
    assert list(keys) == ["rated", ODD, "narrow"]
    tokens = gateway.levels().tokens
    assert keys["rated"] == {
        "requests": 1.0,
        "requests_per_minute": 100,
        "tokens": tokens,
        "tokens_per_minute": 5000,
        "running": 0,
        "concurrent_requests": None,
    }


def test_open_routes_and_wrong_keys_have_no_headers(gateway: Gateway) -> None:
    with gateway.server.http() as http:
        for answer in (http.get("/healthz"), http.get("/"), http.get("/v1/models"), http.get("/nothing")):
            assert limit_headers(answer) == {}


def test_gateway_without_keys_has_one_limit_for_all() -> None:
    config = config_of({"m": scripted("Yes.")}, limits=LimitsConfig(requests_per_minute=2, models=("m",)))
    with serving(config, counters=MemoryCounters(ManualClock())) as server, server.http() as http:
        agents = ({"user-agent": name, "x-api-key": name} for name in ("one", "two", "three"))
        answers = [http.post("/v1/chat/completions", json=CHAT, headers=headers) for headers in agents]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert error_of(answers[2])["message"].startswith("This gateway is at its limit of 2 requests per minute.")
        assert limit_headers(http.get("/healthz")) == {}
