"""Limits on request bodies: size and time to arrive."""

from __future__ import annotations

import gc
import select
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from gateway.generation import Generation
from gateway.server.body import COLLECT_BODY, _Collector
from tests.support.server import Running, config_of, error_of, scripted, serving, wait_until

PATH = "/v1/chat/completions"
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def test_body_over_the_limit_is_413_with_content_length_or_chunked(server: Running, http: httpx.Client) -> None:
    for content in (b" " * 100_001, iter([b" " * 50_000] * 3)):
        response = http.post(PATH, content=content)
        assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")
    assert http.post(PATH, content=b" " * 100_000).status_code == 400
    with closing(server.connect()) as connection:  # the header alone is enough
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_stalled_bodies_do_not_delay_other_requests(server: Running, http: httpx.Client) -> None:
    stalled = [server.connect() for _ in range(50)]
    for connection in stalled:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{".encode())
    assert http.post(PATH, json=CHAT).status_code == 200
    answered, _, _ = select.select(stalled, [], [], 0)
    assert not answered  # so the request above did not wait for their time limit
    for connection in stalled:
        connection.close()


def test_stalled_body_is_408_and_closes_the_connection(monkeypatch: pytest.MonkeyPatch, server: Running) -> None:
    monkeypatch.setattr("gateway.server.body.BODY_TIMEOUT_S", 0.2)
    head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"
    assert server.exchange(head.encode()).startswith(b"HTTP/1.1 408")


# --- the memory of a large body


@pytest.fixture(scope="module")
def large() -> Iterator[httpx.Client]:
    """A client of a server that accepts large bodies, and has a model that fails."""
    faults = [{"after": 2, "error": "EngineFailed", "message": "It broke."}]
    models = {"m": scripted("Hello."), "breaks": scripted("a b c d", faults=faults)}
    models = {name: replace(model, context_length=10_000_000) for name, model in models.items()}
    with serving(config_of(models)) as running, running.http() as http:
        yield http


@contextmanager
def collections() -> Iterator[list[int]]:
    """The sizes of the garbage that was found by whole collections in the thread of large bodies."""
    found: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        is_parser = threading.current_thread().name.startswith("parser")
        if phase == "stop" and info["generation"] == 2 and is_parser:
            found.append(info["collected"])

    gc.callbacks.append(note)
    gc.disable()
    try:
        yield found
    finally:
        gc.enable()
        gc.callbacks.remove(note)


TEXT = "x" * (COLLECT_BODY + 1)
LARGE: dict[str, dict[str, Any]] = {
    PATH: {"messages": [{"role": "user", "content": TEXT}]},
    "/v1/completions": {"prompt": [TEXT, "y"]},
    "/v1/responses": {"input": TEXT, "store": False},
    "/v1/messages": {"max_tokens": 9, "messages": [{"role": "user", "content": TEXT}]},
    "/api/chat": {"messages": [{"role": "user", "content": TEXT}]},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", LARGE)
def test_answered_large_body_is_freed_without_the_garbage_collector(
    large: httpx.Client, path: str, stream: bool
) -> None:
    gc.collect()
    with collections() as found:
        assert large.post(path, json={"model": "m", "stream": stream, **LARGE[path]}).status_code == 200
        assert large.post(PATH, json={**CHAT, "model": "breaks"}).status_code == 503
        wait_until(lambda: not [each for each in gc.get_objects() if is_large(each)], "the request is still in memory")
        assert not found


def is_large(value: object) -> bool:
    """True for the accepted form of a large request. Its text is no object that the collector knows."""
    return isinstance(value, Generation) and TEXT in str(value.prompt)


@pytest.mark.parametrize("stream", [False, True])
def test_garbage_collector_runs_after_a_large_request_that_failed(large: httpx.Client, stream: bool) -> None:
    with collections() as found:
        large.post(PATH, json={"model": "breaks", "stream": stream, **LARGE[PATH]})
        wait_until(lambda: any(found), "the garbage collector did not run")


def test_requests_that_fail_together_share_a_collection() -> None:
    collector, parsed = _Collector(), threading.Event()
    with collections() as found:
        for _ in range(2):
            with ThreadPoolExecutor(1, "parser") as thread:
                thread.submit(parsed.wait, 60)
                for _ in range(10):
                    collector.request(thread)
                parsed.set()
            parsed.clear()
        assert len(found) == 2
        collector.request(thread)  # the server stops
