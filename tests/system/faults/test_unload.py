"""Unload and load with real workers: memory, waiting requests, and nothing that is left."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from gateway.config.tables import LocalModel
from tests.support.server import Running, config_of, error_of, serving

BODY: dict[str, Any] = {"model": "tiny", "prompt": [40, 41, 42], "max_tokens": 8, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def before() -> set[int]:
    """The child processes that are here without the gateway."""
    return children()


@pytest.fixture(scope="module")
def server(before: set[int], tiny: Path) -> Iterator[Running]:
    with serving(config_of({"tiny": LocalModel(path=str(tiny), threads=1)})) as running:
        yield running


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with server.http() as client:
        yield client


def children() -> set[int]:
    """The child processes of this one that are alive, without multiprocessing's own."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ends now
            if not any("resource_tracker" in part for part in process.cmdline()):
                found.add(process.pid)
    return found


def unload(http: httpx.Client) -> None:
    assert http.post("/v1/models/tiny/unload").json()["engine"]["state"] == "unloaded"


def answer(http: httpx.Client) -> str:
    reply = http.post("/v1/completions", json=BODY)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


def test_unload_ends_the_processes_and_the_next_request_starts_them(before: set[int], http: httpx.Client) -> None:
    text = answer(http)
    [model] = http.get("/readyz").json()["models"]
    worker = model["engine"]["pid"]
    assert {worker} < children() - before
    unload(http)
    assert children() <= before and not psutil.pid_exists(worker)
    readiness = http.get("/readyz")
    assert readiness.status_code == 200 and readiness.json()["models"][0]["loads_on_demand"]
    assert http.get("/v1/models/tiny").json()["context_length"] == model["engine"]["context_length"]
    late = http.post("/v1/completions", json=BODY, headers={"x-max-ttft-ms": "1"})
    assert late.status_code == 503 and int(late.headers["retry-after"]) >= 1
    assert "tiny is being loaded, which takes about" in error_of(late)["message"]
    assert answer(http) == text
    assert http.get("/readyz").json()["models"][0]["engine"]["pid"] != worker


def test_tokenizer_request_loads_the_model(http: httpx.Client) -> None:
    unload(http)
    assert http.post("/tokenize", json={"model": "tiny", "content": "abc"}).json()["count"] >= 1
    assert http.get("/readyz").json()["models"][0]["engine"]["state"] == "ready"


def test_storm_of_requests_and_unloads_answers_every_request(before: set[int], server: Running) -> None:
    chance = random.Random(1)
    verbs = ["answer"] * 24 + ["unload"] * 3 + ["load"] * 3
    chance.shuffle(verbs)

    def send(verb: str) -> int:
        with server.http() as http:
            if verb == "answer":
                answer(http)
                return 200
            return http.post(f"/v1/models/tiny/{verb}").status_code

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(send, verbs))
    assert [status for status in statuses if status not in (200, 409)] == []
    with server.http() as http:
        assert len(answer(http)) > 0
        unload(http)
    assert children() <= before
