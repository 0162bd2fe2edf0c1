"""POST /v1/chat/completions over a socket, with scripted models: the official SDK, and raw bytes.

Tests that need the text of a real model are in test_chat_real.py.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import httpx
import msgspec
import openai as sdk
import pytest
from openai import OpenAI

from tests.routes.conftest import MODELS, PARIS
from tests.routes.openai_api.helpers import chunks_of, running_requests, wait_until_idle, wait_until_running
from tests.support.server import Running

HELLO: Any = [{"role": "user", "content": "What is the capital of France?"}]
PATHS = ("/v1/chat/completions", "/chat/completions")


def body(model: str = "paris", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": HELLO, **fields}


# ---- the whole reply


@pytest.mark.parametrize("path", PATHS)
def test_reply_has_every_field_a_client_reads(http: httpx.Client, path: str) -> None:
    before = int(time.time())
    response = http.post(path, json=body())
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    reply = response.json()
    assert reply["id"].startswith("chatcmpl-")
    assert reply["object"] == "chat.completion"
    assert before <= reply["created"] <= time.time()
    assert reply["model"] == "paris"
    assert isinstance(reply["system_fingerprint"], str)
    [choice] = reply["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": PARIS, "refusal": None},
        "finish_reason": "stop",
        "logprobs": None,
    }


def test_reply_without_calls_has_no_tool_calls_key(http: httpx.Client) -> None:
    assert "tool_calls" not in http.post(PATHS[0], json=body()).json()["choices"][0]["message"]


def test_reply_ids_differ(openai: OpenAI) -> None:
    first, second = (openai.chat.completions.create(**body()) for _ in range(2))
    assert first.id != second.id


def test_usage_total_is_the_sum(openai: OpenAI) -> None:
    usage = openai.chat.completions.create(**body()).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (6, 7, 13)
    assert usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens == 0


def test_token_limit_gives_exact_count_and_length_reason(openai: OpenAI) -> None:
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}, {"max_tokens": 9, "max_completion_tokens": 3}):
        reply = openai.chat.completions.create(**body(**limit))
        assert reply.choices[0].finish_reason == "length"
        assert reply.choices[0].message.content == "The capital of"
        assert reply.usage is not None and reply.usage.completion_tokens == 3


def test_max_tokens_1_gives_one_token(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(**body(max_tokens=1))
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("The", "length")


def test_default_limit_is_64_tokens(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(**body("endless"))
    assert reply.usage is not None and reply.usage.completion_tokens == 64
    assert reply.choices[0].finish_reason == "length"


def test_limit_over_the_context_is_clamped(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(**body("narrow", max_tokens=32_000))
    assert (reply.choices[0].finish_reason, reply.choices[0].message.content) == ("length", "The capital")


def test_only_messages_and_model_are_required(openai: OpenAI) -> None:
    nulls = dict.fromkeys(
        ("temperature", "top_p", "n", "stop", "stream", "stream_options", "tools", "tool_choice", "response_format",
         "seed", "logit_bias", "logprobs", "max_tokens", "presence_penalty", "prediction", "user")
    )  # fmt: skip
    assert openai.chat.completions.create(**body(extra_body=nulls)).choices[0].message.content == PARIS


def test_cloud_only_fields_are_ignored(openai: OpenAI) -> None:
    ignored = {
        "user": "u", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "k",
        "safety_identifier": "s", "verbosity": "low", "modalities": ["text"], "something_new": [1],
    }  # fmt: skip
    assert openai.chat.completions.create(**body(extra_body=ignored)).choices[0].message.content == PARIS


@pytest.mark.parametrize(("stop", "text"), [("France", "The capital of "), (["Paris", "of"], "The capital ")])
def test_stop_string_ends_text_before_the_match(openai: OpenAI, stop: Any, text: str) -> None:
    reply = openai.chat.completions.create(**body(stop=stop))
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (text, "stop")


def test_stop_string_across_tokens_is_not_streamed(openai: OpenAI) -> None:
    stream = openai.chat.completions.create(**body(stop="tal of Fr"), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "The capi"


def test_text_held_for_an_incomplete_stop_string_is_streamed(openai: OpenAI) -> None:
    stream = openai.chat.completions.create(**body(stop="Paris. And"), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == PARIS


def test_n_choices_have_indexes_in_order(openai: OpenAI) -> None:
    reply = openai.chat.completions.create(**body(n=3))
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert all(choice.message.content == PARIS and choice.finish_reason == "stop" for choice in reply.choices)
    assert reply.usage is not None and reply.usage.completion_tokens == 21


def test_logprobs_cover_every_token(openai: OpenAI) -> None:
    choice = openai.chat.completions.create(**body(logprobs=True, top_logprobs=1)).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content is not None
    content = choice.logprobs.content
    assert b"".join(bytes(token.bytes or ()) for token in content).decode() == PARIS
    assert all(token.logprob <= 0 and token.top_logprobs[0].token == token.token for token in content)
    without_top = openai.chat.completions.create(**body(logprobs=True)).choices[0].logprobs
    assert without_top is not None and without_top.content is not None
    assert all(token.top_logprobs == [] for token in without_top.content)


def test_body_is_decoded_with_any_content_type(http: httpx.Client) -> None:
    content = msgspec.json.encode(body())
    for kind in ("application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded", "nonsense"):
        response = http.post(PATHS[0], content=content, headers={"content-type": kind})
        assert response.status_code == 200, kind


# ---- streams


def test_stream_has_sse_headers_and_one_data_line_per_event(http: httpx.Client) -> None:
    response = http.post(PATHS[0], json=body(stream=True))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in response.headers
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
    for line in response.text.split("\n\n")[:-1]:
        assert line.startswith(("data: ", ": ")) and "\n" not in line
    assert response.text.endswith("\n\n")


def test_stream_sends_role_then_content_then_finish_reason(http: httpx.Client) -> None:
    chunks = chunks_of(http.post(PATHS[0], json=body(stream=True)).text)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in choice["delta"] for choice in choices[1:])
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["delta"] == {}
    assert all("usage" not in chunk for chunk in chunks)


def test_streamed_text_equals_whole_reply(openai: OpenAI) -> None:
    for model in ("paris", "café", "narrow"):
        whole = openai.chat.completions.create(**body(model)).choices[0]
        chunks = list(openai.chat.completions.create(**body(model), stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
        assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_stream_has_usage_only_with_include_usage(http: httpx.Client) -> None:
    chunks = chunks_of(http.post(PATHS[0], json=body(stream=True, stream_options={"include_usage": True})).text)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == http.post(PATHS[0], json=body()).json()["usage"]
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])
    for options in ({}, {"include_usage": False}, {"include_usage": None}, None):
        chunks = chunks_of(http.post(PATHS[0], json=body(stream=True, stream_options=options)).text)
        assert all(chunk["choices"] and not chunk.get("usage") for chunk in chunks)


def test_stream_options_without_stream_is_400(http: httpx.Client) -> None:
    response = http.post(PATHS[0], json=body(stream_options={"include_usage": True}))
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream_options")


def test_stream_of_n_choices_finishes_each_once(openai: OpenAI) -> None:
    chunks = list(openai.chat.completions.create(**body(n=2), stream=True))
    for index in (0, 1):
        own = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in own) == PARIS
        assert [choice.finish_reason for choice in own if choice.finish_reason] == ["stop"]
        assert [choice.delta.role for choice in own if choice.delta.role] == ["assistant"]


def test_streamed_logprobs_match_the_text_of_their_chunk(openai: OpenAI) -> None:
    for chunk in openai.chat.completions.create(**body(logprobs=True), stream=True):
        choice = chunk.choices[0]
        tokens = choice.logprobs.content if choice.logprobs else None
        assert "".join(token.token for token in tokens or ()) == (choice.delta.content or "")


def test_chunks_arrive_while_the_generation_runs(server: Running, openai: OpenAI) -> None:
    with openai.chat.completions.create(**body("endless", max_tokens=50_000), stream=True) as stream:
        chunks = iter(stream)
        assert all("word" in (next(chunks).choices[0].delta.content or "word") for _ in range(10))
        assert running_requests(server, "endless") == 1
    wait_until_idle(server, "endless")


def test_line_separators_in_text_do_not_split_frames(http: httpx.Client) -> None:
    with http.stream("POST", PATHS[0], json=body("café", stream=True)) as response:
        lines = [line for line in response.iter_lines() if line]  # splits at U+2028 and U+0085 as well
    text = "".join(
        msgspec.json.decode(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "")
        for line in lines
        if line != "data: [DONE]"
    )
    assert text == MODELS["café"].script.replies[0]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", ["true", "false"])
def test_http_1_0_reply_is_not_chunked(server: Running, version: str, stream: str) -> None:
    content = b'{"model": "paris", "stream": %s, "messages": [{"role": "user", "content": "x"}]}' % stream.encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n"
    answer = server.exchange(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    head_of_answer, _, rest = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head_of_answer.splitlines()[0]
    assert b"Paris" in rest
    if version == "1.0":
        assert b"chunked" not in head_of_answer.lower()
        assert rest.startswith(b"data: " if stream == "true" else b"{")


def test_stream_is_not_compressed(http: httpx.Client) -> None:
    response = http.post(PATHS[0], json=body(stream=True), headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in response.headers
    chunks_of(response.text)


def test_chunked_request_body_is_read(http: httpx.Client) -> None:
    content = msgspec.json.encode(body())
    response = http.post(PATHS[0], content=(content[i : i + 7] for i in range(0, len(content), 7)))
    assert response.status_code == 200


def test_expect_100_continue_gets_100(server: Running) -> None:
    content = msgspec.json.encode(body())
    with closing(server.connect()) as connection:
        head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(content)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


# ---- errors


def test_unknown_model_is_404(openai: OpenAI) -> None:
    for stream in (True, False):
        with pytest.raises(sdk.NotFoundError) as caught:
            openai.chat.completions.create(**body("gpt-9"), stream=stream)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
        assert "paris" in caught.value.message


def test_prompt_over_the_context_is_400_with_openai_message(openai: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "word " * 50}]
    for stream in (True, False):
        with pytest.raises(sdk.BadRequestError) as caught:
            openai.chat.completions.create(model="narrow", messages=messages, stream=stream)
        assert caught.value.code == "context_length_exceeded"
        assert "This model's maximum context length is 8 tokens" in caught.value.message


@pytest.mark.parametrize("stream", [True, False])
def test_invalid_field_is_400_with_its_name(http: httpx.Client, stream: bool) -> None:
    response = http.post(PATHS[0], json=body(temperature=3, stream=stream))
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert response.json()["error"]["param"] == "temperature"


def test_image_part_is_400_with_its_path(openai: OpenAI) -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "look"}, part]}]
    with pytest.raises(sdk.BadRequestError) as caught:
        openai.chat.completions.create(model="paris", messages=messages)
    assert caught.value.param == "messages.0.content.1"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"messages": 3}'])
def test_malformed_body_is_400_and_the_connection_stays_open(http: httpx.Client, content: bytes) -> None:
    response = http.post(PATHS[0], content=content)
    assert (response.status_code, response.json()["error"]["type"]) == (400, "invalid_request_error")
    assert http.post(PATHS[0], json=body()).status_code == 200


def test_model_not_ready_is_503_with_retry_after(openai: OpenAI) -> None:
    with pytest.raises(sdk.InternalServerError) as caught:
        openai.chat.completions.create(**body("unloadable"))
    assert (caught.value.status_code, caught.value.code) == (503, "model_not_ready")
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_full_queue_is_429_with_retry_after(openai: OpenAI) -> None:
    with openai.chat.completions.create(**body("busy", max_tokens=10_000), stream=True) as stream:
        next(iter(stream))
        for streamed in (True, False):
            with pytest.raises(sdk.RateLimitError) as caught:
                openai.chat.completions.create(**body("busy"), stream=streamed)
            assert caught.value.code == "rate_limit_exceeded"
            assert int(caught.value.response.headers["retry-after"]) >= 1


def test_failure_of_a_whole_reply_sets_the_http_status(openai: OpenAI) -> None:
    with pytest.raises(sdk.InternalServerError) as caught:
        openai.chat.completions.create(**body("breaks"))
    assert (caught.value.status_code, caught.value.code) == (503, "engine_failed")


def test_failure_in_a_stream_is_one_last_error_frame(http: httpx.Client, openai: OpenAI) -> None:
    response = http.post(PATHS[0], json=body("breaks", stream=True))
    *_, last, empty = response.text.split("\n\n")
    assert (response.status_code, empty) == (200, "")
    error = {
        "message": "The device fell over.",
        "type": "service_unavailable_error",
        "param": None,
        "code": "engine_failed",
    }
    assert msgspec.json.decode(last.removeprefix("data: ")) == {"error": error}
    with pytest.raises(sdk.APIError, match=r"The device fell over\."):
        list(openai.chat.completions.create(**body("breaks"), stream=True))


@pytest.mark.parametrize("value", ["0", "-5", "soon", "inf", "nan"])
def test_invalid_deadline_header_is_400(http: httpx.Client, value: str) -> None:
    response = http.post(PATHS[0], json=body(), headers={"x-request-timeout-ms": value})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "x-request-timeout-ms")


def test_deadline_header_ends_the_request_with_504(http: httpx.Client) -> None:
    endless = body("endless", max_tokens=50_000)  # 500 s
    response = http.post(PATHS[0], json=endless, headers={"x-request-timeout-ms": "100"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"


# ---- clients that disconnect


@pytest.mark.parametrize("stream", ["true", "false"])
def test_disconnect_ends_the_generation(server: Running, stream: str) -> None:
    content = b'{"model": "endless", "max_tokens": 50000, "stream": %s, "messages": [{"role": "user", "content": "x"}]}'
    content %= stream.encode()
    with closing(server.connect()) as connection:
        head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content)
        wait_until_running(server, "endless")
    wait_until_idle(server, "endless")  # the whole answer takes 500 s


def test_request_is_answered_after_200_cancelled_ones(server: Running, openai: OpenAI) -> None:
    content = msgspec.json.encode(body("endless", max_tokens=50_000, stream=True))
    head = f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    for _ in range(200):
        with closing(server.connect()) as connection:
            connection.sendall(head + content)
    openai.chat.completions.create(**body("endless", max_tokens=5))  # each of the others would take 500 s
    wait_until_idle(server, "endless")


def test_disconnect_during_the_body_does_not_affect_others(server: Running, http: httpx.Client) -> None:
    with closing(server.connect()) as connection:
        connection.sendall(f"POST {PATHS[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{{".encode())
    assert http.post(PATHS[0], json=body()).status_code == 200


def test_models_are_listed_while_a_generation_runs(server: Running, http: httpx.Client, openai: OpenAI) -> None:
    with openai.chat.completions.create(**body("endless", max_tokens=50_000), stream=True) as stream:
        next(iter(stream))
        assert http.get("/v1/models").status_code == 200
        assert running_requests(server, "endless") == 1
    wait_until_idle(server, "endless")
