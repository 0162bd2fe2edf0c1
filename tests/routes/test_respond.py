"""Headers of a request and of its reply: predicted time to first token (TTFT), TTFT limit and priority."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from gateway.config.tables import Alias, Script, ScriptedModel
from tests.support.server import PATIENCE_S, Running, config_of, scripted, serving, wait_until

CHAT = "/v1/chat/completions"
PREDICTED = "x-gateway-predicted-ttft-ms"
MODELS = {
    "small": scripted("small"),
    "big": ScriptedModel(fallback="small", script=Script(replies=("big",), ttft_s=2.0)),
    "alone": scripted("first", "second", ttft_s=0.4),
    "short": ScriptedModel(
        script=Script(context_length=60, replies=("Yes",)), aliases={"kept": Alias(truncation="auto")}
    ),
    "one-slot": ScriptedModel(
        max_sequences=1,
        aliases=("one",),
        script=Script(replies=("a",), repeat=True, token_s=0.01, context_length=100_000),
    ),
}


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with serving(config_of(MODELS)) as server, server.http() as client:
        yield client


def body(model: str, content: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}


def test_predicted_ttft_header_is_in_whole_replies_and_streams(http: httpx.Client) -> None:
    http.post(CHAT, json=body("alone"))
    for stream in (False, True):
        predicted_ms = float(http.post(CHAT, json=body("alone", stream=stream)).headers[PREDICTED])
        assert predicted_ms >= 400  # the measured TTFT is at least the script's
    answer = http.post("/v1/completions", json={"model": "alone", "prompt": ["one", "two"]})
    assert float(answer.headers[PREDICTED]) >= 400


def test_max_ttft_below_the_prediction_is_refused_at_once(http: httpx.Client) -> None:
    http.post(CHAT, json=body("alone"))
    refused = [http.post(CHAT, json=body("alone"), headers={"x-max-ttft-ms": "100"}) for _ in range(5)]
    assert {response.status_code for response in refused} == {503}
    error = refused[0].json()["error"]
    assert error["code"] == "first_token_too_late"
    assert "the limit for the first token is 0.1 s" in error["message"]
    assert refused[0].headers["x-should-retry"] == "false"
    answer = http.post(CHAT, json=body("alone")).json()
    assert answer["choices"][0]["message"]["content"] == "second"  # the refused requests used no reply of the script


def test_max_ttft_below_the_prediction_moves_to_the_fallback(http: httpx.Client) -> None:
    http.post(CHAT, json=body("big"))
    answer = http.post(CHAT, json=body("big"), headers={"x-max-ttft-ms": "1900"}).json()
    assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("small", "small")


@pytest.mark.parametrize(
    ("model", "fields", "headers"),
    [
        ("one-slot", {}, {"x-gateway-priority": "background"}),
        ("one-slot", {"service_tier": "flex"}, {}),
        ("one-slot:background", {}, {}),
        ("one:background", {}, {}),
    ],
)
def test_background_request_waits_for_interactive_one(
    http: httpx.Client,
    caplog: pytest.LogCaptureFixture,
    model: str,
    fields: dict[str, Any],
    headers: dict[str, str],
) -> None:
    """The order is that of the log lines. Two client threads would not always see the answers in this order."""
    caplog.set_level(logging.INFO, logger="gateway.lanes.answer")
    occupied = http.stream("POST", CHAT, json=body("one-slot", stream=True, max_tokens=50_000))
    with ThreadPoolExecutor(2) as pool:
        with occupied as stream:  # the only slot, until the others wait
            lines = stream.iter_lines()  # kept in a variable: a collected generator closes the connection
            wait_for_text(lines)
            background = pool.submit(http.post, CHAT, json=body(model, max_tokens=100, **fields), headers=headers)
            wait_for_queue(1, http)
            chat = pool.submit(http.post, CHAT, json=body("one-slot", max_tokens=1))
            wait_for_queue(2, http)
        assert [each.result(PATIENCE_S).status_code for each in (chat, background)] == [200, 200]
    ended = [
        found[1] for record in caplog.records if (found := re.search(r" (\d+) tokens? .*length  ", record.message))
    ]
    assert ended == ["1", "100"]


def wait_for_text(lines: Iterator[str]) -> None:
    """The headers of a stream may arrive while it is still queued; its first text shows that it runs."""
    while '"content":"a"' not in next(lines):
        pass  # raises StopIteration if the text never comes


def wait_for_queue(length: int, http: httpx.Client) -> None:
    def waiting() -> int:
        models = http.get("/readyz").json()["models"]
        return int(next(model["waiting"] for model in models if model["model"] == "one-slot"))

    wait_until(lambda: waiting() >= length, "the request is not in the queue")


@pytest.mark.parametrize("value", ["low", "", "BACKGROUND"])
def test_unknown_priority_is_400(http: httpx.Client, value: str) -> None:
    answer = http.post(CHAT, json=body("one-slot"), headers={"x-gateway-priority": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "x-gateway-priority")


def test_local_model_has_predicted_ttft_after_its_first_request(local: Running) -> None:
    with local.http() as client:
        client.post(CHAT, json=body("tiny", max_tokens=1))
        assert float(client.post(CHAT, json=body("tiny", "Hello again", max_tokens=1)).headers[PREDICTED]) > 0


LIMIT = "x-gateway-max-tokens"
LIMITED = {
    "m": ScriptedModel(
        aliases={"coder": Alias(max_tokens="context"), "plain": Alias()},
        max_tokens=3,
        script=Script(replies=("one two three four five",), repeat=True, prompt_tokens=4, context_length=24),
    )
}


@pytest.fixture(scope="module")
def limited() -> Iterator[httpx.Client]:
    with serving(config_of(LIMITED)) as server, server.http() as client:
        yield client


class TestTokenLimit:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("path", "fields"),
        [
            (CHAT, {"messages": [{"role": "user", "content": "Hello"}]}),
            ("/v1/responses", {"input": "Hello"}),
            ("/api/chat", {"messages": [{"role": "user", "content": "Hello"}]}),
            ("/api/generate", {"prompt": "Hello"}),
        ],
    )
    def test_default_limit_is_in_a_header(
        self, limited: httpx.Client, path: str, fields: dict[str, Any], stream: bool
    ) -> None:
        headers = {
            name: limited.post(path, json={"model": name, "stream": stream, **fields}).headers.get(LIMIT)
            for name in ("m", "plain", "coder")
        }
        assert headers == {"m": "3 (default)", "plain": "3 (default)", "coder": "context (default)"}

    def test_limit_of_the_request_has_no_header(self, limited: httpx.Client) -> None:
        sent = [
            (CHAT, body("m", max_tokens=5)),
            (CHAT, body("m", max_completion_tokens=-1)),
            ("/v1/responses", {"model": "m", "input": "a", "max_output_tokens": -1}),
            ("/v1/completions", {"model": "m", "prompt": "a", "max_tokens": -1}),
            ("/v1/messages", body("m", max_tokens=5)),
            ("/api/chat", body("m", options={"num_predict": -1}, stream=False)),
        ]
        answers = [limited.post(path, json=fields) for path, fields in sent]
        assert [(answer.status_code, answer.headers.get(LIMIT)) for answer in answers] == [(200, None)] * len(sent)

    @pytest.mark.parametrize(
        ("name", "fields", "tokens"), [("coder", {}, 20), ("m", {}, 3), ("m", {"max_tokens": -1}, 20)]
    )
    def test_context_and_minus_one_are_up_to_the_end_of_the_context(
        self, limited: httpx.Client, name: str, fields: dict[str, Any], tokens: int
    ) -> None:
        answer = limited.post(CHAT, json=body(name, **fields)).json()
        assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (tokens, "length")

    def test_log_says_that_the_default_limit_ended_an_answer(
        self, limited: httpx.Client, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, logger="gateway.lanes.answer")
        for fields in ({}, {"max_tokens": 3}):
            limited.post(CHAT, json=body("m", **fields))
        first, second = (record.message for record in caplog.records)
        assert "  length (default limit; send max_tokens)  .." in first
        assert "  length  .." in second


AUTO = {"x-gateway-truncation": "auto"}
#: Ten words for each of eight turns, for a context of 60 words.
HISTORY = [{"role": role, "content": "word " * 5} for _ in range(8) for role in ("user", "assistant")]
QUESTION = {"role": "user", "content": "Is it?"}


def test_oldest_turns_are_left_out_on_request(http: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *HISTORY, QUESTION]
    for path, sent, headers in (
        (CHAT, body("short", messages=messages, max_tokens=8), AUTO),
        (CHAT, body("short", messages=messages, max_tokens=8, stream=True), AUTO),
        (CHAT, body("kept", messages=messages, max_tokens=8), {}),
        ("/v1/responses", {"model": "short", "input": messages, "truncation": "auto", "max_output_tokens": 8}, {}),
        ("/v1/messages", {"model": "short", "messages": [*HISTORY, QUESTION], "max_tokens": 8}, AUTO),
        ("/api/chat", {"model": "short", "messages": messages, "options": {"num_predict": 8}}, {}),
    ):
        with caplog.at_level(logging.INFO):
            reply = http.post(path, json=sent, headers=headers)
        assert reply.status_code == 200, (path, reply.text)
        assert reply.headers["x-gateway-truncated"] == "messages=8", path
        assert "8 oldest messages left out" in caplog.text
        caplog.clear()
        if path == "/v1/responses":
            assert reply.json()["truncation"] == "auto" and reply.json()["usage"]["input_tokens"] == 52


def test_long_chat_is_refused_without_the_policy(http: httpx.Client) -> None:
    messages = [*HISTORY, QUESTION]
    for path, sent, headers in (
        (CHAT, body("short", messages=messages), {}),
        (CHAT, body("kept", messages=messages), {"x-gateway-truncation": "disabled"}),
        ("/v1/responses", {"model": "kept", "input": messages, "truncation": "disabled"}, {}),
        ("/v1/responses", {"model": "short", "input": messages}, {}),
        ("/api/chat", {"model": "short", "messages": messages, "truncate": False}, {}),
    ):
        reply = http.post(path, json=sent, headers=headers)
        assert reply.status_code == 400 and "maximum context length is 60 tokens" in reply.text, path
        assert "x-gateway-truncated" not in reply.headers


def test_newest_turn_that_is_too_long_is_refused_with_the_next_step(http: httpx.Client) -> None:
    newest = {"role": "user", "content": "word " * 60 + "word"}
    error = http.post(CHAT, json=body("short", messages=[*HISTORY, newest]), headers=AUTO).json()["error"]
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
    assert "your prompt has 61 tokens without its 16 oldest messages. Shorten the system text" in error["message"]
    refused = http.post(CHAT, json=body("short"), headers={"x-gateway-truncation": "yes"})
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "x-gateway-truncation"
    fits = http.post(CHAT, json=body("short"), headers=AUTO)
    assert (
        http.post("/v1/responses", json={"model": "short", "input": "Hi"}, headers=AUTO).json()["truncation"] == "auto"
    )
    assert fits.status_code == 200 and "x-gateway-truncated" not in fits.headers
