"""A hostile upstream server behind a real gateway: one 502 or one error frame, bounded memory, no log at ERROR."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from gateway.config.tables import BreakerConfig
from tests.support.hostile import (
    CHAT,
    ENDPOINTS,
    HEAD,
    ErrorLog,
    Hostile,
    chunk,
    gateway_before,
    hostile,
    post,
    stream,
    wait_until_closed,
)
from tests.support.server import Running

CHUNKED = HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n")
BOMB = gzip.compress(b"data: " + b"x" * 50_000_000, 9)


@pytest.fixture(scope="module")
def gateway(server: Hostile) -> Iterator[Running]:
    with gateway_before(server, api_key="sk-upstream-secret", watchdog_s=30.0) as running:
        yield running


def call(index: Any = 0, id: Any = "c", name: Any = "f", arguments: Any = "{}") -> dict[str, Any]:
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def chat_error(gateway: Running, body: dict[str, Any] = CHAT) -> tuple[int, str]:
    status, content = post(gateway, "/v1/chat/completions", body)
    return status, json.loads(content)["error"]["message"]


# --- where the prompt and the key go


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308, 399])
@pytest.mark.parametrize("where", ["other", "same", "relative", "none"])
def test_redirect_is_502_and_prompt_goes_nowhere_else(
    server: Hostile, gateway: Running, status: int, where: str
) -> None:
    with hostile() as other:
        port = other.port if where == "other" else server.port
        target = {"relative": "/elsewhere", "none": ""}.get(where, f"http://127.0.0.1:{port}/elsewhere")
        location = f"location: {target}\r\n" if target else ""
        server.answer = f"HTTP/1.1 {status} Moved\r\n{location}content-length: 0\r\n\r\n".encode()
        before = len(server.requests)
        code, message = chat_error(gateway)
        assert (code, len(server.requests) - before, other.requests) == (502, 1, [])
        assert ("redirects" in message or status == 399) and "elsewhere" not in message


def test_key_and_prompt_are_sent_once_and_no_compression_is_requested(server: Hostile, gateway: Running) -> None:
    server.answer = stream(chunk(content="Hello"), chunk("stop"))
    before = len(server.requests)
    status, _ = post(gateway, "/v1/chat/completions", CHAT)
    [request] = server.requests[before:]
    assert status == 200
    head = request.partition(b"\r\n\r\n")[0].lower()
    assert b"accept-encoding: identity" in head and b"authorization: bearer sk-upstream-secret" in head


def test_loopback_never_goes_through_a_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with hostile() as proxy, hostile() as server:
        server.answer = stream(chunk(content="direct"), chunk("stop"))
        proxy.answer = stream(chunk(content="proxied"), chunk("stop"))
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        with gateway_before(server, api_key="sk-secret") as gateway:
            _, content = post(gateway, "/v1/chat/completions", CHAT)
        assert json.loads(content)["choices"][0]["message"]["content"] == "direct"
        assert proxy.requests == []


# --- bounds


def rss() -> int:
    return psutil.Process().memory_info().rss


FLOODS: dict[str, tuple[bytes, bytes]] = {
    "line_without_end": (HEAD + b"data: ", b"x" * 65536),
    "comment_without_end": (HEAD + b": ", b"x" * 65536),
    "json_string_without_end": (HEAD + b'data: {"choices":[{"delta":{"content":"', b"x" * 65536),
    "data_lines_without_event": (HEAD, b"data: x\n" * 8192),
    "lines_of_a_field_that_is_not_data": (HEAD, b"id: 1\n" * 8192),
    "empty_lines": (HEAD, b"\n" * 65536),
    "comments": (HEAD, b":\n\n" * 16384),
    "chunks_without_content": (HEAD, b'data: {"choices":[]}\n\n' * 2048),
    "chunks_with_empty_deltas": (HEAD, b'data: {"choices":[{"index":0,"delta":{"content":""}}]}\n\n' * 1024),
    "text_without_end": (HEAD, b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"word " * 2000)),
    "arguments_without_end": (
        HEAD + b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f"}}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"%s"}}]}}]}\n\n' % (b"w" * 9000),
    ),
    "header_without_end": (b"HTTP/1.1 200 OK\r\nx: ", b"x" * 65536),
    "headers_without_end": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 8192),
    "interim_answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 2048),
    "status_line_without_end": (b"", b"x" * 65536),
    "chunk_extension_without_end": (
        HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n1;"),
        b"x" * 65536,
    ),
    "small_chunks": (HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n"), b"1\r\n\n\r\n" * 8192),
    "error_body": (b"HTTP/1.1 500 No\r\n\r\n", b"x" * 65536),
    "error_body_of_bad_request": (b'HTTP/1.1 400 No\r\ncontent-type: application/json\r\n\r\n{"error":"', b"x" * 65536),
    "json_body": (b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"a":"', b"x" * 65536),
}


@pytest.mark.parametrize(("head", "piece"), FLOODS.values(), ids=FLOODS)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
def test_flood_ends_early_with_flat_memory(
    server: Hostile, gateway: Running, head: bytes, piece: bytes, streamed: bool
) -> None:
    sent = 0

    async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(head)
        while sent < 300_000_000:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    server.answer = flood
    before = rss()
    status, content = post(gateway, "/v1/chat/completions", {**CHAT, "stream": streamed})
    assert len(content) < 10_000_000
    expected = 400 if head.startswith(b"HTTP/1.1 400") else 502
    assert status == expected or (status == 200 and streamed and content.count(b'"upstream_failed"') == 1)
    wait_until_closed(server)
    assert sent < 40_000_000
    assert rss() - before < 60_000_000


@pytest.mark.parametrize("status", [b"200 OK", b"400 Bad", b"500 No"])
@pytest.mark.parametrize("kind", [b"text/event-stream", b"application/json"])
@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"br", b"zstd", b"GZip, gzip"])
def test_compressed_answer_is_refused_and_not_decompressed(
    server: Hostile, gateway: Running, status: bytes, kind: bytes, encoding: bytes
) -> None:
    head = b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-encoding: %s\r\ncontent-length: %d\r\n\r\n"
    server.answer = head % (status, kind, encoding, len(BOMB)) + BOMB
    before = rss()
    code, message = chat_error(gateway)
    assert code == (400 if status == b"400 Bad" else 502)
    assert status != b"200 OK" or "not OpenAI's API" in message
    assert rss() - before < 30_000_000


def test_gzip_transfer_encoding_is_502(server: Hostile, gateway: Running) -> None:
    server.answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n" + gzip.compress(b"x" * 1000)
    assert chat_error(gateway)[0] == 502


def test_line_that_drips_is_silence(server: Hostile) -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    server.answer = drip
    with gateway_before(server, watchdog_s=0.3) as gateway:
        assert chat_error(gateway) == (502, "The server behind 'm' was silent for too long.")
        wait_until_closed(server)


def test_client_that_leaves_closes_the_connection(server: Hostile, gateway: Running) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(stream(chunk(content="a"), done=False))
        await writer.drain()
        await reader.read()

    server.answer = endless
    for _ in range(20):
        with (
            gateway.http() as http,
            http.stream("POST", "/v1/chat/completions", json={"model": "m", "stream": True, **CHAT}) as response,
        ):
            next(response.iter_bytes())
    wait_until_closed(server)
    server.answer = stream(chunk(content="b"), chunk("stop"))
    assert post(gateway, "/v1/chat/completions", CHAT)[0] == 200


# --- malformed answers


OK = chunk(content="a")
LONG = "x" * 2000
MALFORMED: dict[str, bytes] = {
    "choices_object": stream({"choices": {}}),
    "choices_text": stream({"choices": "x"}),
    "choices_of_numbers": stream({"choices": [1]}),
    "choices_null_items": stream({"choices": [None]}),
    "129_choices": stream({"choices": [{"index": 0}] * 129}),
    "index_negative": stream(chunk(index=-1, content="a")),
    "index_text": stream(chunk(index="0", content="a")),
    "index_not_requested": stream(chunk(index=1, content="a")),
    "index_huge": stream(chunk(index=10**30, content="a")),
    "index_fraction": stream(chunk(index=0.5, content="a")),
    "content_list": stream(chunk(content=[1])),
    "content_number": stream(chunk(content=1)),
    "content_object": stream(chunk(content={"a": 1})),
    "content_false": stream(chunk(content=False)),
    "reasoning_list": stream(chunk(reasoning_content=["a"])),
    "delta_list": stream({"choices": [{"index": 0, "delta": []}]}),
    "text_list": stream({"choices": [{"index": 0, "text": [1]}]}),
    "finish_reason_number": stream(OK, chunk(1)),
    "finish_reason_object": stream(OK, chunk({"a": 1})),
    "tool_calls_object": stream(chunk(tool_calls={})),
    "tool_calls_of_numbers": stream(chunk(tool_calls=[3])),
    "tool_call_index_negative": stream(chunk(tool_calls=[call(-1)])),
    "tool_call_index_text": stream(chunk(tool_calls=[call("0")])),
    "tool_call_name_number": stream(chunk(tool_calls=[call(name=1)])),
    "tool_call_id_number": stream(chunk(tool_calls=[call(id=7)])),
    "tool_call_arguments_number": stream(chunk(tool_calls=[call(arguments=1)])),
    "tool_call_function_list": stream(chunk(tool_calls=[{"index": 0, "function": []}])),
    "tool_calls_mixed": stream(chunk(tool_calls=[call(0)]), chunk(tool_calls=[call(1)]), chunk(tool_calls=[call(0)])),
    "tool_call_after_text": stream(chunk(tool_calls=[call(0)]), OK, chunk(tool_calls=[call(0)]), chunk("stop")),
    "too_many_tool_calls": stream(
        *(chunk(tool_calls=[call(n) for n in range(at, at + 100)]) for at in range(0, 1100, 100))
    ),
    "content_after_the_end": stream(OK, chunk("stop"), OK),
    "no_end": stream(OK),
    "nothing": stream(),
    "nothing_at_all": HEAD,
    "list": stream("[1, 2]"),
    "null": stream("null"),
    "number": stream("1"),
    "text": stream('"x"'),
    "not_json": stream("{broken"),
    "json_twice": stream('{"choices":[]}{"choices":[]}'),
    "nan": stream('{"choices":[{"index":NaN}]}'),
    "deep": stream('{"x":' + "[" * 100_000),
    "deep_error": stream('{"error":' + "[" * 100_000),
    "deep_usage": stream('{"usage":' + '{"a":' * 100_000),
    "invalid_utf8": stream(b'{"choices":[{"index":0,"delta":{"content":"\xff\xfe"}}]}'),
    "lone_surrogate": stream('{"choices":[{"index":0,"delta":{"content":"\\ud800"}}]}'),
    "utf16": HEAD + stream(OK)[len(HEAD) :].decode().encode("utf-16"),
    "nul_bytes": stream(b"\x00" * 100),
    "cut_event": stream(OK, chunk("stop"), done=False)[:-20],
    "error_object": stream(OK, {"error": {"message": "Fell over.", "code": 7}}),
    "error_text": stream(OK, {"error": "Fell over."}),
    "error_list": stream(OK, {"error": [1]}),
    "error_number": stream(OK, {"error": 1}),
    "error_message_list": stream(OK, {"error": {"message": [1], "code": {}}}),
    "error_first": stream({"error": {"message": "\x1b[2J\r\n\x00" + LONG}}),
    "json_error_with_200": b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"error": {"message": "No."}}',
    "json_answer_with_200": b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n{"choices": []}',
    "html_with_200": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n\r\n<html><body>Welcome</body></html>",
    "html_with_502": b"HTTP/1.1 502 No\r\ncontent-type: text/html\r\n\r\n<html>",
    "no_content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "reset_content": b"HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n",
    "switching_protocols": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nbytes",
    "only_interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n",
    "status_99": b"HTTP/1.1 99 No\r\n\r\n",
    "status_600": b"HTTP/1.1 600 No\r\ncontent-length: 0\r\n\r\n",
    "status_999": b"HTTP/1.1 999 No\r\ncontent-length: 0\r\n\r\n",
    "not_http": b"SSH-2.0-OpenSSH_9\r\n",
    "http_2_preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http_0_9": b"data: {}\n\n",
    "closed": b"",
    "header_without_colon": b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n",
    "header_with_nul": b"HTTP/1.1 200 OK\r\na: \x00\r\n\r\n",
    "content_length_too_long": HEAD.replace(b"\r\n\r\n", b"\r\ncontent-length: 9999\r\n\r\n") + stream(OK)[len(HEAD) :],
    "content_length_negative": HEAD.replace(b"\r\n\r\n", b"\r\ncontent-length: -1\r\n\r\n"),
    "content_length_text": HEAD.replace(b"\r\n\r\n", b"\r\ncontent-length: x\r\n\r\n"),
    "content_length_twice": HEAD.replace(b"\r\n\r\n", b"\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"),
    "chunked_cut": HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\nff\r\ndata: "),
    "chunked_broken": HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"),
    "chunk_size_negative": HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n"),
    "chunk_size_huge": HEAD.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n"),
}


@pytest.mark.parametrize("answer", MALFORMED.values(), ids=MALFORMED)
def test_malformed_answer_is_502_or_one_error_frame(server: Hostile, gateway: Running, answer: bytes) -> None:
    server.answer = answer
    with ErrorLog() as log:
        for path, body in ENDPOINTS.items():
            status, content = post(gateway, path, {**body, "stream": False})
            assert status == 502, (path, content)
            assert len(content) < 1500 and b"\\u001b" not in content
            status, content = post(gateway, path, {**body, "stream": True})
            assert status == 502 or (status == 200 and content.count(b'"error"') >= 1), (path, content)
    assert log.lines == []
    wait_until_closed(server)


END = chunk("stop")
LENIENT: dict[str, bytes] = {
    "no_done": stream(OK, END, done=False),
    "no_last_empty_line": stream(OK, END, done=False)[:-1],
    "data_after_done": stream(OK, END) + b"data: {broken\n\n",
    "two_ends": stream(OK, END, END),
    "empty_delta_after_end": stream(OK, END, chunk(content="", role="assistant")),
    "unknown_finish_reason": stream(OK, chunk("eos\x00")),
    "crlf": stream(OK, END).replace(b"\n\n", b"\r\n\r\n"),
    "cr": HEAD + stream(OK, END)[len(HEAD) :].replace(b"\n", b"\r"),
    "byte_order_mark": HEAD + b"\xef\xbb\xbf" + stream(OK, END)[len(HEAD) :],
    "no_space_after_data": stream(OK, END).replace(b"data: ", b"data:"),
    "comments_and_other_fields": HEAD + b": hi\nevent: x\nid: 1\nretry: 5\nnonsense\n" + stream(OK, END)[len(HEAD) :],
    "data_in_two_lines": HEAD
    + b'data: {"choices":\ndata: [{"index":0,"delta":{"content":"a"},\ndata: "finish_reason":"stop"}]}\n\n',
    "empty_data": HEAD + b"data:\n\n" + stream(OK, END)[len(HEAD) :],
    "role_of_a_wrong_type": stream(chunk(role=7, content="a"), END),
    "other_fields_of_wrong_types": stream({"id": 1, "object": [], "created": "x", "model": {}, **OK}, END),
    "usage_text": stream(OK, {**END, "usage": "many"}),
    "usage_of_texts": stream(OK, END, {"choices": [], "usage": {"prompt_tokens": "9", "completion_tokens": "7"}}),
    "usage_negative": stream(OK, END, {"usage": {"prompt_tokens": -9, "completion_tokens": -1}}),
    "usage_huge": stream(OK, END, {"usage": {"prompt_tokens": 10**40, "completion_tokens": 10**15}}),
    "usage_fractions": stream(OK, END, {"usage": {"prompt_tokens": 0.5, "completion_tokens": True}}),
    "usage_more_cached_than_prompt": stream(
        OK, END, {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 9}}}
    ),
    "usage_details_list": stream(OK, END, {"usage": {"prompt_tokens_details": [], "completion_tokens_details": 4}}),
    "stop_reason_of_a_wrong_type": stream(
        OK, {"choices": [{"index": 0, "finish_reason": "stop", "stop_reason": {"a": []}}]}
    ),
    "no_index": stream({"choices": [{"delta": {"content": "a"}}]}, END),
    "nul_character": stream(chunk(content="a\x00"), END),
    "content_type_text": stream(OK, END).replace(b"text/event-stream", b"text/plain"),
    "status_201": stream(OK, END).replace(b"200 OK", b"201 Created"),
    "interim_answers_before": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + stream(OK, END),
    "http_1_0": stream(OK, END).replace(b"HTTP/1.1", b"HTTP/1.0"),
}


@pytest.mark.parametrize("answer", LENIENT.values(), ids=LENIENT)
def test_odd_answer_without_loss_is_answered(server: Hostile, gateway: Running, answer: bytes) -> None:
    server.answer = answer
    with ErrorLog() as log:
        for path, body in ENDPOINTS.items():
            for streamed in (False, True):
                status, content = post(gateway, path, {**body, "stream": streamed})
                assert status == 200 and b'"error":{' not in content, (path, content)
    assert log.lines == []
    status, content = post(gateway, "/v1/chat/completions", CHAT)
    reply = json.loads(content)
    assert reply["choices"][0]["message"]["content"].rstrip("\x00") == "a"
    usage = reply["usage"]
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"] <= 10**7
    assert 0 <= usage["completion_tokens"] <= 10**7


def test_first_tool_call_with_another_index_is_answered_by_every_api(server: Hostile, gateway: Running) -> None:
    first = [{"index": 5, "id": "c1", "function": {"name": "f", "arguments": '{"a"'}}]
    rest = [{"index": 5, "function": {"arguments": ": 1}"}}]
    server.answer = stream(
        chunk(tool_calls=first), chunk(tool_calls=rest), chunk(tool_calls=[call(2, id="c2")]), chunk("tool_calls")
    )
    with ErrorLog() as log:
        for path, body in ENDPOINTS.items():
            for streamed in (False, True):
                assert post(gateway, path, {**body, "stream": streamed})[0] == 200
    assert log.lines == []
    _, content = post(gateway, "/v1/chat/completions", ENDPOINTS["/v1/chat/completions"])
    calls = json.loads(content)["choices"][0]["message"]["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("c1", '{"a": 1}'), ("c2", "{}")]


LOGPROBS: dict[str, Any] = {
    "text": "x",
    "list": [],
    "content_object": {"content": {}},
    "token_number": {"content": [{"token": 1, "logprob": -1}]},
    "logprob_text": {"content": [{"token": "a", "logprob": "-1"}]},
    "no_token": {"content": [{"logprob": -1}]},
    "byte_of_256": {"content": [{"token": "a", "logprob": -1, "bytes": [256]}]},
    "bytes_text": {"content": [{"token": "a", "logprob": -1, "bytes": "a"}]},
    "top_number": {"content": [{"token": "a", "logprob": -1, "top_logprobs": [1]}]},
    "tokens_of_numbers": {"tokens": [1], "token_logprobs": [-1.0]},
    "top_list": {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [[1]]},
    "3000_tokens": {"content": [{"token": "a", "logprob": -1}] * 3000},
}


@pytest.mark.parametrize("found", LOGPROBS.values(), ids=LOGPROBS)
def test_malformed_logprobs_are_502_only_if_requested(server: Hostile, gateway: Running, found: Any) -> None:
    piece = {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": found}]}
    server.answer = stream(piece, END)
    with ErrorLog() as log:
        assert post(gateway, "/v1/chat/completions", {**CHAT, "logprobs": True})[0] == 502
        assert post(gateway, "/v1/chat/completions", CHAT)[0] == 200
    assert log.lines == []


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(
    ("sent", "low", "high"),
    [
        ("7", 7, 7),
        ("inf", 3600, 3600),
        ("1e300", 3600, 3600),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600, 3600),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 1),
        *((text, None, 1) for text in ("nan", "-1", "-inf", "soon", "", "Fri, 99 Foo 9999", "9" * 5000)),
    ],
)
def test_retry_after_is_a_bounded_number(
    server: Hostile, gateway: Running, status: int, sent: str, low: int | None, high: int
) -> None:
    server.answer = f"HTTP/1.1 {status} No\r\nretry-after: {sent}\r\ncontent-length: 0\r\n\r\n".encode()
    with gateway.http(verify=False) as http:
        response = http.post("/v1/chat/completions", json={"model": "m", **CHAT})
    assert response.status_code == (429 if status == 429 else 502)
    found = response.headers.get("retry-after")
    if sent.startswith("999"):
        high = 3600
    if found is not None:
        assert (low or 0) <= int(found) <= high
    else:
        assert low is None or (status != 429 and low == 0)


# --- blame


def test_malformed_answers_open_the_breaker_and_mistakes_of_requests_do_not(server: Hostile) -> None:
    breaker = BreakerConfig(latency_ms=1e6, window=4, min_calls=4, rate=1.0, open_s=1000.0)
    with gateway_before(server, breaker) as gateway:
        for status in (400, 413, 422, 429):
            server.answer = f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode()
            for _ in range(5):
                found = post(gateway, "/v1/chat/completions", CHAT)[0]
                assert found == (429 if status == 429 else 400)
        server.answer = stream(chunk(content=[1]))
        codes = [post(gateway, "/v1/chat/completions", CHAT)[0] for _ in range(5)]
    assert codes == [502, 502, 502, 502, 503]


# --- any bytes


SEEDS = [
    stream(chunk(role="assistant", content=""), OK, chunk(content="é東\n"), END, {"usage": {"prompt_tokens": 1}}),
    stream(chunk(tool_calls=[call(0)]), chunk(tool_calls=[call(1, id="d")]), chunk("tool_calls")),
    stream({"choices": [{"index": 0, "text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]}}]}, END),
    stream(chunk(reasoning_content="Hm"), {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {
        "content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]}}]}, chunk("length")),
    b'HTTP/1.1 400 Bad\r\ncontent-type: application/json\r\n\r\n{"error": {"message": "No.", "param": "x", "code": 1}}',
    CHUNKED + b'12\r\ndata: {"choices":[]\r\n3\r\n}\n\n\r\n0\r\n\r\n',
]  # fmt: skip
VALUES = [
    b"null",
    b"[]",
    b"{}",
    b'""',
    b"-1",
    b"1e999",
    b"true",
    b'"\\ud800"',
    b"[[[]]]",
    b"1.5",
    b"99999999999999999999",
]
VALUES += [b"\x00", b"\xff", b"\r", b"\n", b"\r\n\r\n", b"data: ", b"[DONE]", b"index", b"tool_calls", b'"error"', b":"]


def mutated(random: random.Random) -> bytes:
    answer = bytearray(random.choice(SEEDS))
    start = len(HEAD) - 4 if random.random() < 0.8 and answer.startswith(HEAD) else 0
    for _ in range(random.randint(1, 4)):
        at = random.randint(start, len(answer))
        match random.randrange(6):
            case 0:
                answer[at : at + random.randint(1, 12)] = b""
            case 1:
                answer[at : at + random.randint(0, 8)] = random.choice(VALUES)
            case 2:
                answer[at:at] = answer[start : start + random.randint(1, 200)]
            case 3:
                del answer[at:]
            case 4 if at < len(answer):
                answer[at] = random.randrange(256)
            case _:
                colons = [i for i in range(start, len(answer)) if answer[i] == ord(":")]
                if colons:
                    at = random.choice(colons) + 1
                    answer[at : at + random.randint(1, 5)] = random.choice(VALUES)
    return bytes(answer)


def test_mutated_answer_is_never_a_500(server: Hostile, gateway: Running) -> None:
    chance = random.Random(12)
    with ErrorLog() as log:
        for number in range(400):
            server.answer = mutated(chance)
            path = chance.choice(list(ENDPOINTS))
            status, content = post(gateway, path, {**ENDPOINTS[path], "stream": chance.random() < 0.5})
            assert status in (200, 400, 429, 502), (number, path, server.answer, content)
            assert b"gateway failed" not in content, (number, path, server.answer, content)
            assert log.lines == [], (number, path, server.answer, content)
    wait_until_closed(server)
