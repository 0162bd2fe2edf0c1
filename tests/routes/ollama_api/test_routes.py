"""Ollama's API over a socket: the official client and raw bytes, with scripted and with local models."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest
from ollama import Client, ResponseError

from tests.routes.conftest import PARIS
from tests.routes.ollama_api.helpers import FRANCE, QUESTION, lines_of
from tests.routes.openai_api.helpers import wait_until_idle
from tests.support.server import Running


def test_answer_is_right_streamed_and_whole(real: Client) -> None:
    whole = real.chat("smollm2", FRANCE, options={"temperature": 0, "num_predict": 64})
    assert "Paris" in (whole.message.content or "")
    parts = list(real.chat("smollm2:latest", FRANCE, stream=True, options={"temperature": 0, "num_predict": 64}))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (whole.done, whole.done_reason, whole.model) == (True, "stop", "smollm2")


def test_durations_are_nanoseconds_and_add_up(real: Client) -> None:
    reply = real.chat("smollm2", FRANCE, options={"num_predict": 8, "temperature": 0})
    assert reply.prompt_eval_count and reply.prompt_eval_count > 10 and reply.eval_count == 8
    assert reply.prompt_eval_duration and reply.eval_duration and reply.total_duration and reply.load_duration == 0
    assert 10**6 < reply.prompt_eval_duration + reply.eval_duration <= reply.total_duration < 3600 * 10**9


def test_generate_applies_the_template_unless_raw(real: Client) -> None:
    options = {"temperature": 0, "num_predict": 16}
    reply = real.generate("smollm2", QUESTION, system="Be brief.", options=options)
    assert "Paris" in (reply.response or "")
    raw = real.generate("smollm2", "The capital of France is", raw=True, options=options)
    assert "Paris" in (raw.response or "")
    assert (raw.prompt_eval_count or 0) < (reply.prompt_eval_count or 0)
    parts = real.generate("smollm2", QUESTION, system="Be brief.", options=options, stream=True)
    assert "".join(part.response or "" for part in parts) == reply.response


def test_answer_matches_its_schema(real: Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    schema["additionalProperties"] = False
    reply = real.chat("smollm2", FRANCE, format=schema, options={"num_predict": 64, "temperature": 1.5})
    assert reply.done_reason == "length" or isinstance(msgspec.json.decode(reply.message.content or "")["n"], int)


def test_prompt_over_the_context_is_400(real: Client) -> None:
    with pytest.raises(ResponseError, match="maximum context length") as refused:
        real.chat("smollm2", [{"role": "user", "content": "word " * 20_000}])
    assert refused.value.status_code == 400


def test_stream_is_one_json_object_per_line(http: httpx.Client) -> None:
    response = http.post("/api/chat", json={"model": "paris", "messages": FRANCE})
    assert response.headers["content-type"].startswith("application/x-ndjson")
    *parts, last = lines_of(response.text)
    assert "".join(part["message"]["content"] for part in parts) == PARIS
    assert all(part["model"] == "paris" and part["created_at"] and part["done"] is False for part in parts)
    assert (last["done"], last["done_reason"], last["message"]) == (True, "stop", {"role": "assistant", "content": ""})
    assert (last["prompt_eval_count"], last["eval_count"]) == (6, 7)
    assert "done_reason" not in parts[0] and "response" not in parts[0]


def test_generate_reply_has_its_text_in_response(http: httpx.Client) -> None:
    reply = http.post("/api/generate", json={"model": "paris", "prompt": QUESTION, "stream": False}).json()
    assert (reply["response"], reply["done"]) == (PARIS, True)
    assert "message" not in reply


def test_token_limit_gives_length_reason(client: Client) -> None:
    reply = client.chat("paris", FRANCE, options={"num_predict": 3})
    assert (reply.message.content, reply.done_reason, reply.eval_count) == ("The capital of", "length", 3)


def test_stop_string_ends_text_before_the_match(client: Client) -> None:
    assert client.chat("paris", FRANCE, options={"stop": ["France"]}).message.content == "The capital of "


def test_request_without_messages_gets_load_reason(client: Client) -> None:
    assert client.chat("paris", []).done_reason == "load"
    assert client.generate("paris", keep_alive="5m").done_reason == "load"


def test_logprobs_cover_the_text(client: Client) -> None:
    scored = client.chat("paris", FRANCE, logprobs=True, top_logprobs=1).logprobs
    assert scored is not None and "".join(token.token for token in scored) == PARIS


DEEP = {"function": {"name": "f", "arguments": {"x": msgspec.json.decode(b"[" * 200 + b"]" * 200)}}}


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("chat", {"messages": [{"role": "user", "content": "?", "images": ["aGk="]}]}, "messages.0.images"),
        ("generate", {"prompt": "?", "images": ["aGk="]}, "images"),
        ("generate", {"prompt": "?", "template": "{{ .Prompt }}"}, "template"),
        ("generate", {"prompt": "?", "context": [1, 2]}, "context"),
        ("chat", {"messages": FRANCE, "options": {"temperature": -1}}, "options.temperature"),
        ("chat", {"messages": FRANCE, "options": {"temperature": "hot"}}, "options.temperature"),
        ("chat", {"messages": FRANCE, "format": "xml"}, "format"),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": [DEEP]}]}, "tool_calls.0.function.arguments"),
    ],
)
def test_invalid_field_is_400_with_its_name(http: httpx.Client, path: str, fields: Any, name: str) -> None:
    response = http.post(f"/api/{path}", json={"model": "paris", **fields})
    assert response.status_code == 400
    assert name in response.json()["error"]


def test_error_is_a_text(client: Client, http: httpx.Client) -> None:
    with pytest.raises(ResponseError, match="missing") as missing:
        client.chat("missing", FRANCE)
    assert missing.value.status_code == 404
    with pytest.raises(ResponseError) as down:
        client.generate("unloadable", "?")
    assert down.value.status_code == 503
    for response in (http.get("/api/chat"), http.post("/api/pull", json={}), http.post("/api/chat", content=b"{")):
        assert isinstance(response.json()["error"], str)


def test_failure_in_a_stream_is_a_last_error_line(client: Client, http: httpx.Client) -> None:
    lines = lines_of(http.post("/api/chat", json={"model": "breaks", "messages": FRANCE}).text)
    assert lines[-1] == {"error": "The device fell over."}
    assert not any(line.get("done") for line in lines)
    with pytest.raises(ResponseError, match="fell over"):
        list(client.chat("breaks", FRANCE, stream=True))


def test_disconnect_ends_the_generation(server: Running, client: Client) -> None:
    stream = client.chat("endless", FRANCE, stream=True, options={"num_predict": -1})
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    wait_until_idle(server, "endless")  # the whole answer takes 1,000 s
