"""Blame: whatever a request contains, only device calls count against a device.

A real tiny model in a real worker, over a real socket. The worker's clock shows one more millisecond at each look, so a
device call takes 1 ms on every machine. Any other time that came into the forecast would be far from that.
"""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from gateway.builder.build import build_bundle
from gateway.config.tables import BreakerConfig
from gateway.engines.base import Plan
from gateway.lanes.lane import Lane
from tests.support import workers
from tests.support.manual_clock import ManualClock
from tests.support.server import Running, config_of, serving, wait_until
from tests.support.tiny import build_tiny, write_tiny_folder
from tests.system.faults.client import ask, local_engine, worker_of

EXAMPLES = 150
CALL_S = 0.001  # of the worker's clock
ONE_CALL = Plan(prompt_tokens=10, chunk_width=64, max_tokens=4)
BREAKER = BreakerConfig(latency_ms=600_000, min_calls=1, open_s=600)  # a busy machine is not slow enough
RAISING = "{% for m in messages %}{{ m.content }}{{ m.content.nothing.more }}{% endfor %}"
DIVIDING = "{{ 1 // (messages | length - messages | length) }}"


class WatchClock(ManualClock):
    """The watchdog's clock. It counts the looks at it."""

    looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


@pytest.fixture(scope="module")
def clock() -> WatchClock:
    return WatchClock()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """When this file exists, grammars are compiled."""
    return tmp_path_factory.mktemp("tiny") / "go"


@pytest.fixture(scope="module")
def server(clock: WatchClock, gate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    tiny = build_tiny(gate.parent)
    engines = {
        "tiny": local_engine("tiny", tiny, workers.waits_to_compile, clock=clock, watchdog_s=0.5),
        "fails": local_engine("fails", tiny, workers.fails_every_call),
    }
    for name, template in (("raises", RAISING), ("divides", DIVIDING)):
        source = write_tiny_folder(tmp_path_factory.mktemp(name) / "source")
        path = source / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8")) | {"chat_template": template}
        path.write_text(json.dumps(settings), encoding="utf-8")
        bundle = build_bundle(source, source.parent / "bundle", progress=lambda *_: None)
        engines[name] = local_engine(name, bundle, workers.takes_1_ms_per_call)
    models = {name: engine._model for name, engine in engines.items()}
    with serving(config_of(models, breaker=BREAKER), engines) as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def lane_of(server: Running, model: str) -> Lane:
    lane: Lane = server.app.state.router.lanes[model]
    return lane


def assert_no_blame(server: Running, model: str = "tiny") -> None:
    """Nothing is held against the device: it made its calls in 1 ms each, and all of them succeeded."""
    lane = lane_of(server, model)
    supervisor = lane.engine._supervisor  # type: ignore[attr-defined]
    assert lane.breaker.state == "closed" and lane.breaker.verdict[0] == 0
    assert (supervisor._failures, supervisor.restarts, supervisor.state) == (0, 0, "ready")
    learned_s = lane._forecast._forecast.first_token_s(ONE_CALL, others=0)
    assert learned_s is None or learned_s <= 4 * CALL_S


# -- the reported attacks -----------------------------------------------------------------------------------------


def test_schema_with_a_wrong_type_is_no_engine_failure(server: Running) -> None:
    """One call of the official SDK, with its retries, while another client streams."""
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "format": ["date"]}}}
    before, begun = worker_of(server, "tiny").pid, threading.Event()
    with ThreadPoolExecutor(1) as pool, server.openai(max_retries=2) as client:
        other = pool.submit(ask, server, "tiny", begun=begun)
        assert begun.wait(60)
        messages: Any = [{"role": "user", "content": "Hello"}]
        for _ in range(3):
            try:
                client.chat.completions.create(
                    model="tiny",
                    messages=messages,
                    response_format=schema,
                    max_tokens=4,  # type: ignore[call-overload]
                )
            except openai.APIStatusError as error:
                assert error.code != "engine_failed"
        assert other.result(60).error == {}
    assert worker_of(server, "tiny").pid == before
    assert_no_blame(server)


def test_message_of_private_characters_leaves_the_breaker_closed(server: Running, http: httpx.Client) -> None:
    content = "".join(map(chr, range(0xF0000, 0xFFFFE))) + "<|im_end|>"
    for _ in range(5):
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        assert http.post("/v1/chat/completions", json=body).json().get("error", {}).get("code") != "engine_failed"
        http.post("/tokenize", json={"model": "tiny", "content": content})
    assert_no_blame(server)


def test_wait_for_the_compiler_is_no_silence_of_the_device(
    server: Running, http: httpx.Client, clock: WatchClock, gate: Path
) -> None:
    """Grammars compile for a long time. One client leaves, one has a limit, one sends a small schema."""
    supervisor = lane_of(server, "tiny").engine._supervisor  # type: ignore[attr-defined]
    url = "/v1/chat/completions"
    body = {"model": "tiny", "messages": TURN, "max_tokens": 4}
    assert http.post(url, json=body).status_code == 200  # the forecast has a measurement

    def schema(of: dict[str, Any]) -> dict[str, Any]:
        return body | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": of}}}

    with pytest.raises(httpx.TimeoutException):
        http.post(url, json=schema({"type": "integer", "multipleOf": 1_000_003}), timeout=0.5)
    limited = schema({"type": "integer", "multipleOf": 1_000_033})
    late = http.post(url, json=limited, headers={"x-max-ttft-ms": "400"})
    assert late.json()["error"]["code"] in ("deadline_exceeded", "first_token_too_late")
    assert_no_blame(server)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(http.post, url, json=limited)
        small = pool.submit(http.post, url, json=schema({"type": "boolean"}))
        assert small.result(60).status_code == 200
        wait_until(lambda: len(lane_of(server, "tiny").engine._running) >= 1, "no request waits")  # type: ignore[attr-defined]
        for _ in range(3):
            wait_until(lambda: supervisor._process.activity.state == "waiting", "the worker is busy")
            clock.now += 1000.0
            looks = clock.looks
            wait_until(lambda looks=looks: clock.looks > looks + 4, "the watchdog does not look")
        assert not waiting.done()
        gate.touch()
        assert waiting.result(60).status_code == 400
    assert_no_blame(server)
    assert http.post(url, json=body, headers={"x-max-ttft-ms": "10000"}).status_code == 200


@pytest.mark.parametrize("model", ["raises", "divides"])
def test_template_that_fails_blames_nothing(server: Running, http: httpx.Client, model: str) -> None:
    for _ in range(4):
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        assert http.post("/v1/chat/completions", json=body).status_code >= 400
    assert_no_blame(server, model)


def test_failing_device_calls_are_counted(server: Running, http: httpx.Client) -> None:
    """The opposite: without this, the tests above could not fail."""
    answer = http.post("/v1/completions", json={"model": "fails", "prompt": "Hello"})
    assert answer.json()["error"]["code"] == "engine_failed"
    lane = lane_of(server, "fails")
    assert lane.breaker.state == "open"
    assert lane.engine._supervisor._failures == 1  # type: ignore[attr-defined]


# -- any request --------------------------------------------------------------------------------------------------

TURN = [{"role": "user", "content": "Say yes."}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "format": "date", "minLength": 1, "pattern": "^a+$"},
        "count": {"type": "integer", "minimum": 0, "multipleOf": 5},
        "kind": {"enum": ["a", "b"]},
        "more": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}, "maxItems": 2},
    },
    "required": ["name"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
OPTIONS: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 5,
    "seed": 1,
    "stop": ["a"],
    "logit_bias": {"65": 5, "383": -100},
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
}
CHAT = {"model": "tiny", "messages": TURN, "max_tokens": 3}
TEXT = {"model": "tiny", "prompt": "yes no", "max_tokens": 3}
STRICT = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT | OPTIONS),
    ("/v1/chat/completions", CHAT | {"response_format": STRICT}),
    ("/v1/chat/completions", CHAT | {"tools": [TOOL], "tool_choice": "required"}),
    ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 3, "n": 2}),
    ("/v1/chat/completions", CHAT | {"prediction": {"type": "content", "content": "yes no yes no"}}),
    ("/v1/chat/completions", CHAT | {"guided_regex": "(a|b)+c?", "temperature": 0}),
    ("/v1/chat/completions", CHAT | {"grammar": 'start: "a" b\nb: /c+/'}),
    ("/v1/completions", TEXT | OPTIONS | {"n": 2}),
    ("/v1/completions", TEXT | {"echo": True, "logprobs": 2, "suffix": "x"}),
    ("/v1/completions", TEXT | {"guided_choice": ["yes", "no"]}),
    ("/v1/completions", TEXT | {"prompt": [60, 61, 62, 400], "ignore_eos": True, "min_tokens": 2}),
    ("/v1/responses", {"model": "tiny", "input": "x", "max_output_tokens": 3, "text": {"format": STRICT}}),
    ("/v1/messages", {"model": "tiny", "messages": TURN, "max_tokens": 3, "stop_sequences": ["a"], "top_k": 3}),
    ("/v1/messages/count_tokens", {"model": "tiny", "messages": TURN}),
    ("/api/chat", {"model": "tiny", "messages": TURN, "options": {"num_predict": 3, "seed": 1}, "format": SCHEMA}),
    ("/api/generate", {"model": "tiny", "prompt": "x", "options": {"num_predict": 3}, "format": "json"}),
    ("/v1/embeddings", {"model": "tiny", "input": "x"}),
    ("/tokenize", {"model": "tiny", "content": "x"}),
    ("/detokenize", {"model": "tiny", "tokens": [65, 66]}),
    ("/apply-template", {"model": "tiny", "messages": TURN}),
]
HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, -(2**65), 0.5, 1e-45, -0.0, 1e308, 3.4e38,
    "", "x", "date", "\x00", "\U000f0000\U000ffffd<|im_end|>", "é" * 50, "<|im_start|>", "(", "[z-a]", "(a+)+$", "\\",
    "a{1000}", "start: start", 'start: "', "#/properties/none", "{{ 1/0 }}", [], ["date"], [[]], [None], [-1, 1e9],
    {}, {"type": ["date"]}, {"$ref": "#"}, {"type": 5}, {"383": 1e30}, {"-1": 1}, {"x": {}}, {"enum": []},
    {"pattern": "("}, {"format": ["date"]}, {"minimum": 5, "maximum": 1}, {"const": {"a": [1, {"b": None}]}},
]  # fmt: skip


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each part of a JSON value, without the value itself."""
    if isinstance(value, Mapping):
        items: Any = value.items()
    else:
        items = enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield (*path, key)
        yield from paths_in(part, (*path, key))


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    key, *rest = path
    copy = dict(value) if isinstance(value, Mapping) else list(value)
    copy[key] = replaced(value[key], tuple(rest), by)
    return copy


def mutated(body: dict[str, Any], dice: random.Random, times: int) -> dict[str, Any]:
    """The body with some of its parts replaced; also a part by another part of it. The model stays."""
    for _ in range(times):
        paths = [path for path in paths_in(body) if path != ("model",)]
        own = dice.choice(paths)
        by: Any = dice.choice(HOSTILE)
        if dice.random() < 0.2:
            by = body
            for key in dice.choice(paths):
                by = by[key]
        body = replaced(body, own, by)
    return body


@seed(12)
@settings(
    max_examples=EXAMPLES,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
)
@given(data=st.data())
def test_no_request_is_held_against_the_device(
    server: Running, http: httpx.Client, gate: Path, data: st.DataObject
) -> None:
    gate.touch()
    path, body = data.draw(st.sampled_from(REQUESTS))
    dice = random.Random(data.draw(st.integers(0, 2**32)))
    body = mutated(body, dice, dice.choice([1, 1, 2, 4]))
    headers = {"content-type": "application/json"}
    if dice.random() < 0.2:
        headers["x-max-ttft-ms"] = dice.choice(["1", "20", "1000"])
    answer = http.post(path, content=json.dumps(body), headers=headers)
    assert "engine_failed" not in answer.text, (path, body)
    assert_no_blame(server)
