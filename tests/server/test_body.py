"""Limits on request bodies: size and time to arrive."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import select
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from gateway.errors import BodyTooLarge
from gateway.generation import Generation
from gateway.lanes.reload.presence import Presence
from gateway.server.body import _Collector, inflated, limit_bodies, parse
from gateway.server.shares import COLLECT_BODY
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


# --- compressed bodies, byte order marks, halves of surrogate pairs

RAW = json.dumps(CHAT).encode()


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def sent(http: httpx.Client, body: bytes | Iterator[bytes], encoding: str, path: str = PATH) -> httpx.Response:
    return http.post(path, content=body, headers={"content-encoding": encoding})


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(RAW, mtime=0)),
        ("GZip", gzip.compress(RAW, mtime=0)),
        ("x-gzip", gzip.compress(RAW[:10], mtime=0) + gzip.compress(RAW[10:], mtime=0)),
        ("deflate", zlib.compress(RAW)),
        ("deflate", raw_deflate(RAW)),
        ("identity", RAW),
        ("utf-8", RAW),
        ("", RAW),
    ],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_compressed_body_is_read(http: httpx.Client, encoding: str, body: bytes, chunked: bool) -> None:
    answer = sent(http, iter([body[:5], body[5:]]) if chunked else body, encoding)
    assert answer.json()["choices"][0]["message"]["content"] == "Hello."


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "x" * 500])
def test_unknown_encoding_is_415_with_the_known_ones(http: httpx.Client, encoding: str) -> None:
    answer = sent(http, RAW, encoding)
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_content_encoding")
    assert answer.headers["accept-encoding"] == "gzip, deflate"
    assert len(error_of(answer)["message"]) < 250


@pytest.mark.parametrize(
    "body",
    [
        RAW,
        gzip.compress(RAW, mtime=0)[:-9],
        gzip.compress(RAW, mtime=0) + b"x",
        gzip.compress(b"", mtime=0) * 200,
        b"\x1f\x8b",
    ],
)
def test_damaged_compressed_body_is_400(http: httpx.Client, body: bytes) -> None:
    answer = sent(http, body, "gzip")
    assert answer.status_code == 400 and "is not valid 'gzip' data" in error_of(answer)["message"]


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_body_that_expands_over_the_limit_is_413(
    http: httpx.Client, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    bomb = pack(b"[" * 10_000_000)
    assert len(bomb) < 100_000  # below `max_body_bytes`
    answer = sent(http, bomb, encoding)
    assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")
    assert sent(http, pack(b" " * 100_000), encoding).status_code == 400  # not JSON, but short enough


def test_limit_of_an_expanded_body_is_exact() -> None:
    tried = inflated(gzip.compress(b"x" * 500), "gzip", 500)
    assert len(tried) == 500
    with pytest.raises(BodyTooLarge):
        inflated(gzip.compress(b"x" * 501), "gzip", 500)


def test_byte_order_mark_is_skipped(http: httpx.Client) -> None:
    assert http.post(PATH, content=b"\xef\xbb\xbf" + RAW).status_code == 200
    assert sent(http, gzip.compress(b"\xef\xbb\xbf" + RAW), "gzip").status_code == 200
    assert http.post(PATH, content=b"\xef\xbb\xbf").status_code == 400


HALVES = {
    r"x\ud83d": "x\ufffd",
    r"\ud83dx": "\ufffdx",
    r"\udc00": "\ufffd",
    r"\uD83D\uD83D": "\ufffd\ufffd",
    r"\ud83d\ud83d\ude00": "\ufffd\U0001f600",
    r"\ude00\ud83d": "\ufffd\ufffd",
    r"\\\ud83d": "\\\ufffd",
    r"\\ud83d": r"\ud83d",  # an escaped backslash: the text has these six characters
    r"\ud83d\n": "\ufffd\n",
    r"\ud83d\u0041": "\ufffdA",
    r"\ud83d\ude00": "\U0001f600",
}


@pytest.mark.parametrize(("text", "read"), HALVES.items())
def test_half_of_a_surrogate_pair_becomes_the_replacement_character(text: str, read: str) -> None:
    decoder = msgspec.json.Decoder(dict[str, str])
    assert parse(f'{{"content": "{text}", "{text}": "a"}}'.encode(), decoder) == {"content": read, read: "a"}


def test_half_of_a_surrogate_pair_is_accepted_by_each_api(http: httpx.Client) -> None:
    messages = r'"model": "m", "messages": [{"role": "user", "content": "x\ud83d"}]'
    bodies = {
        PATH: messages,
        "/v1/completions": r'"model": "m", "prompt": "x\ud83d"',
        "/v1/responses": r'"model": "m", "input": "x\ud83d"',
        "/v1/messages": messages + ', "max_tokens": 5',
        "/api/chat": messages,
        "/api/generate": r'"model": "m", "prompt": "x\ud83d"',
    }
    answers = {path: http.post(path, content=f"{{{body}}}".encode()).status_code for path, body in bodies.items()}
    assert answers == dict.fromkeys(bodies, 200)


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


async def test_request_is_checked_when_the_configuration_is_fresh() -> None:
    presence, steps = Presence(), list[str]()
    presence.rests()

    async def app(*_: Any) -> None:
        steps.append("answered")

    limit = limit_bodies(lambda: 1, 1, lambda scope: steps.append("checked"), presence)(app)
    scope: Any = {"headers": [], "state": {}}
    request = asyncio.ensure_future(limit(scope, app, app))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert not steps
    presence.looked()
    await request
    assert steps == ["checked", "answered"]


async def test_disconnect_is_seen_after_a_reload_that_lowers_the_limit() -> None:
    messages: list[Any] = [{"type": "http.request", "body": b"12", "more_body": False}, {"type": "http.disconnect"}]
    limits, seen = [2], list[str]()

    async def receive() -> Any:
        return messages.pop(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["type"])
        limits[0] = 1
        seen.append((await receive())["type"])

    limit = limit_bodies(lambda: limits[0], 10, lambda scope: None, Presence())(app)
    scope: Any = {"headers": [(b"content-length", b"2")], "state": {}, "client": ("127.0.0.1", 1)}
    await limit(scope, receive, app)  # type: ignore[arg-type]
    assert seen == ["http.request", "http.disconnect"]


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
