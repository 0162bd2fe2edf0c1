"""Ollama's door: its official client and raw bytes against scripted models, then against the real one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ollama import Client, ResponseError

from gateway.config import Defaults
from gateway.errors import InvalidRequest
from gateway.generation import (
    Chat,
    ChoiceFinished,
    Finished,
    Generation,
    Message,
    ReasoningDelta,
    Started,
    Text,
    TextDelta,
    Timings,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from gateway.routes.ollama_api.parse import UNLIMITED, chat_of, generation_of, prompt_of
from gateway.routes.ollama_api.render import OllamaRendering
from gateway.routes.ollama_api.wire import OllamaChatRequest, OllamaGenerateRequest, Options
from gateway.server.body import parse
from tests.routes.conftest import PARIS
from tests.routes.openai_api.test_parse_completions import ANYTHING
from tests.support.server import Running

QUESTION = "What is the capital of France?"
FRANCE: Any = [{"role": "user", "content": QUESTION}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}},
}

_chat_decoder = msgspec.json.Decoder(OllamaChatRequest)
_generate_decoder = msgspec.json.Decoder(OllamaGenerateRequest)


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def real(local: Running) -> Iterator[Client]:
    with Client(local.url) as client:
        yield client


def chatting(**fields: Any) -> Generation:
    request = parse(msgspec.json.encode({"model": "m", "messages": FRANCE, **fields}), _chat_decoder)
    return generation_of(request, chat_of(request), Defaults(), model="m", id="ollama-1")


def generating(**fields: Any) -> Generation:
    request = parse(msgspec.json.encode({"model": "m", "prompt": QUESTION, **fields}), _generate_decoder)
    return generation_of(request, prompt_of(request), Defaults(), model="m", id="ollama-1")


def lines_of(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\n")
    return [msgspec.json.decode(line) for line in text.splitlines()]


# ---- the real model


def test_the_real_model_says_paris_streamed_and_not(real: Client) -> None:
    whole = real.chat("smollm2", FRANCE, options={"temperature": 0, "num_predict": 64})
    assert "Paris" in (whole.message.content or "")
    parts = list(real.chat("smollm2:latest", FRANCE, stream=True, options={"temperature": 0, "num_predict": 64}))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (whole.done, whole.done_reason, whole.model) == (True, "stop", "smollm2")


def test_times_are_nanoseconds_and_add_up(real: Client) -> None:
    reply = real.chat("smollm2", FRANCE, options={"num_predict": 8, "temperature": 0})
    assert reply.prompt_eval_count and reply.prompt_eval_count > 10 and reply.eval_count == 8
    assert reply.prompt_eval_duration and reply.eval_duration and reply.total_duration and reply.load_duration == 0
    assert 10**6 < reply.prompt_eval_duration + reply.eval_duration <= reply.total_duration < 60 * 10**9


def test_generate_uses_the_template_unless_it_is_raw(real: Client) -> None:
    options = {"temperature": 0, "num_predict": 16}
    reply = real.generate("smollm2", QUESTION, system="Be brief.", options=options)
    assert "Paris" in (reply.response or "")
    raw = real.generate("smollm2", "The capital of France is", raw=True, options=options)
    assert "Paris" in (raw.response or "")
    assert (raw.prompt_eval_count or 0) < (reply.prompt_eval_count or 0)
    parts = real.generate("smollm2", QUESTION, system="Be brief.", options=options, stream=True)
    assert "".join(part.response or "" for part in parts) == reply.response


def test_an_answer_keeps_to_its_schema(real: Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    schema["additionalProperties"] = False
    reply = real.chat("smollm2", FRANCE, format=schema, options={"num_predict": 64, "temperature": 1.5})
    assert reply.done_reason == "length" or isinstance(msgspec.json.decode(reply.message.content or "")["n"], int)


def test_a_prompt_that_is_too_long_is_refused(real: Client) -> None:
    with pytest.raises(ResponseError, match="maximum context length") as refused:
        real.chat("smollm2", [{"role": "user", "content": "word " * 20_000}])
    assert refused.value.status_code == 400


# ---- what there is


def test_models_are_listed_with_a_tag(client: Client) -> None:
    names = [model.model for model in client.list().models]
    assert {"paris:latest", "gpt-4o-mini:latest", "org/alias:7b"} <= set(names)
    assert [model.model for model in client.ps().models] == [name for name in names if name != "unloadable:latest"]


def test_every_listed_name_can_be_asked(client: Client) -> None:
    for name in ("paris:latest", "gpt-4o-mini:latest", "org/alias:7b", "paris"):
        assert client.chat(name, FRANCE).message.content == PARIS


def test_show_tells_what_editors_ask(real: Client, local: Running) -> None:
    shown = real.show("smollm2:latest")
    assert shown.modelinfo is not None and shown.capabilities is not None
    architecture = shown.modelinfo["general.architecture"]
    with local.http() as http:
        card = http.get("/v1/models/smollm2").json()
    assert shown.modelinfo[f"{architecture}.context_length"] == card["context_length"] > 1000
    assert shown.capabilities == ["completion", "tools"]


def test_show_by_the_older_name(http: httpx.Client) -> None:
    assert http.post("/api/show", json={"name": "paris"}).json()["modelfile"] == "FROM paris\n"
    assert "model" in http.post("/api/show", json={}).json()["error"]


def test_version_and_the_knock_at_the_door(http: httpx.Client) -> None:
    major, minor, _ = http.get("/api/version").json()["version"].split(".")
    assert (int(major), int(minor)) >= (0, 6)  # the least that editors ask for
    assert http.head("/").status_code == 200


# ---- replies


def test_the_stream_is_lines_of_json(http: httpx.Client) -> None:
    response = http.post("/api/chat", json={"model": "paris", "messages": FRANCE})
    assert response.headers["content-type"].startswith("application/x-ndjson")
    *parts, last = lines_of(response.text)
    assert "".join(part["message"]["content"] for part in parts) == PARIS
    assert all(part["model"] == "paris" and part["created_at"] and part["done"] is False for part in parts)
    assert (last["done"], last["done_reason"], last["message"]) == (True, "stop", {"role": "assistant", "content": ""})
    assert (last["prompt_eval_count"], last["eval_count"]) == (6, 7)
    assert "done_reason" not in parts[0] and "response" not in parts[0]


def test_generate_has_its_text_in_response(http: httpx.Client) -> None:
    reply = http.post("/api/generate", json={"model": "paris", "prompt": QUESTION, "stream": False}).json()
    assert (reply["response"], reply["done"]) == (PARIS, True)
    assert "message" not in reply


def test_the_limit_ends_with_length(client: Client) -> None:
    reply = client.chat("paris", FRANCE, options={"num_predict": 3})
    assert (reply.message.content, reply.done_reason, reply.eval_count) == ("The capital of", "length", 3)


def test_stop_cuts_before_the_match(client: Client) -> None:
    assert client.chat("paris", FRANCE, options={"stop": ["France"]}).message.content == "The capital of "


def test_without_messages_the_model_is_only_loaded(client: Client) -> None:
    assert client.chat("paris", []).done_reason == "load"
    assert client.generate("paris", keep_alive="5m").done_reason == "load"


def test_logprobs(client: Client) -> None:
    scored = client.chat("paris", FRANCE, logprobs=True, top_logprobs=1).logprobs
    assert scored is not None and "".join(token.token for token in scored) == PARIS


def test_thinking_and_calls_have_places_of_their_own() -> None:
    rendering = OllamaRendering("chat", chatting())
    events = [
        Started(prompt_tokens=9), ReasoningDelta("Hm."), TextDelta("Let me see."),
        ToolCallDelta(index=0, id="call_a", name="weather"), ToolCallDelta(index=0, arguments='{"at":'),
        ToolCallDelta(index=0, arguments='"Paris"}'), ToolCallDelta(index=1, id="call_b", name="clock", arguments="{}"),
        ChoiceFinished("tool_calls"),
        Finished(usage=Usage(completion_tokens=20), timings=Timings(queue_s=1, ttft_s=3, total_s=7)),
    ]  # fmt: skip
    lines = lines_of(b"".join(piece for event in events for piece in rendering.pieces("m", event)).decode())
    assert [line["message"].get("thinking") for line in lines] == ["Hm.", None, None, None]
    assert lines[2]["message"]["tool_calls"] == [
        {"id": "call_a", "function": {"name": "weather", "arguments": {"at": "Paris"}}},
        {"id": "call_b", "function": {"name": "clock", "arguments": {}}},
    ]
    last = lines[3]
    assert (last["done_reason"], last["eval_count"]) == ("stop", 20)
    times = (last["prompt_eval_duration"], last["eval_duration"], last["total_duration"])
    assert times == (2 * 10**9, 4 * 10**9, 7 * 10**9)


# ---- what is understood


def test_options_in_the_gateways_terms() -> None:
    generation = chatting(
        options={
            "num_predict": 5, "temperature": 0.3, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7, "stop": "x",
            "repeat_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.4, "num_ctx": 4096, "num_gpu": 1,
        }
    )  # fmt: skip
    sampling = generation.sampling
    assert (generation.max_tokens, generation.stop) == (5, ("x",))
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.3, 0.9, 40, 0.1)
    assert (sampling.seed, sampling.repetition_penalty) == (7, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.2, 0.4)


@pytest.mark.parametrize(("asked", "limit"), [(None, 64), (-1, UNLIMITED), (-2, UNLIMITED), (9, 9)])
def test_how_many_tokens(asked: int | None, limit: int) -> None:
    assert chatting(options={"num_predict": asked}).max_tokens == limit


@pytest.mark.parametrize(("format", "kind"), [("", None), (None, None), ("json", "json_object"), ({}, "json_schema")])
def test_formats(format: Any, kind: str | None) -> None:
    grammar = chatting(format=format).grammar
    assert (grammar and grammar.kind) == kind


@pytest.mark.parametrize(("think", "effort"), [(None, None), (False, "none"), (True, "medium"), ("high", "high")])
def test_think_is_the_templates_switch(think: Any, effort: str | None) -> None:
    for generation in (chatting(think=think), generating(think=think)):
        assert isinstance(generation.prompt, Chat) and generation.prompt.reasoning_effort == effort


def test_results_are_matched_to_calls_without_ids() -> None:
    calls = [{"function": {"name": name, "arguments": {"x": 1}}} for name in ("weather", "clock")]
    prompt = chatting(
        messages=[
            *FRANCE,
            {"role": "assistant", "content": "", "thinking": "Hm", "tool_calls": calls},
            {"role": "tool", "content": "Rain.", "tool_name": "weather"},
            {"role": "tool", "content": "Noon.", "tool_name": "clock"},
        ],
        tools=[TOOL],
    ).prompt
    assert isinstance(prompt, Chat) and prompt.tool_choice.mode == "auto"
    first, second = ToolCall("call_1_0", "weather", '{"x":1}'), ToolCall("call_1_1", "clock", '{"x":1}')
    assert prompt.messages[1:] == (
        Message(role="assistant", reasoning="Hm", tool_calls=(first, second)),
        Message(role="tool", content="Rain.", name="weather", tool_call_id="call_1_0"),
        Message(role="tool", content="Noon.", name="clock", tool_call_id="call_1_1"),
    )


def test_prompts() -> None:
    assert generating(raw=True).prompt == Text(QUESTION)
    assert generating(suffix="}").prompt == Text(QUESTION, "}")
    chat = generating(system="Be brief.").prompt
    assert isinstance(chat, Chat) and [message.role for message in chat.messages] == ["system", "user"]


# ---- what is refused


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
        ("chat", {"messages": FRANCE, "tools": [{"type": "browser"}]}, "tools.0.type"),
    ],
)
def test_refused_by_name(http: httpx.Client, path: str, fields: Any, name: str) -> None:
    response = http.post(f"/api/{path}", json={"model": "paris", **fields})
    assert response.status_code == 400
    assert name in response.json()["error"]


def test_errors_are_a_text(client: Client, http: httpx.Client) -> None:
    with pytest.raises(ResponseError, match="nobody") as missing:
        client.chat("nobody", FRANCE)
    assert missing.value.status_code == 404
    with pytest.raises(ResponseError) as down:
        client.generate("unloadable", "?")
    assert down.value.status_code == 503
    for response in (http.get("/api/chat"), http.post("/api/pull", json={}), http.post("/api/chat", content=b"{")):
        assert isinstance(response.json()["error"], str)


def test_a_stream_that_fails_midway_ends_with_an_error_line(client: Client, http: httpx.Client) -> None:
    lines = lines_of(http.post("/api/chat", json={"model": "breaks", "messages": FRANCE}).text)
    assert lines[-1] == {"error": "The device fell over."}
    assert not any(line.get("done") for line in lines)
    with pytest.raises(ResponseError, match="fell over"):
        list(client.chat("breaks", FRANCE, stream=True))


# ---- leaving


def test_leaving_a_stream_frees_the_device(server: Running, client: Client) -> None:
    stream = client.chat("endless", FRANCE, stream=True, options={"num_predict": -1})
    next(iter(stream))
    stream.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 2
    while any(status.running for status in server.app.state.router.status() if status.model == "endless"):
        assert time.monotonic() < until, "the request still runs"
        time.sleep(0.01)


# ---- anything


OPTIONS = st.dictionaries(st.sampled_from([*Options.__struct_fields__, "num_ctx"]), ANYTHING, max_size=3)
FIELDS = st.dictionaries(
    st.sampled_from([*OllamaChatRequest.__struct_fields__, *OllamaGenerateRequest.__struct_fields__]),
    ANYTHING,
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(FIELDS, OPTIONS)
def test_whatever_is_asked_is_a_request_or_a_refusal(fields: Any, options: Any) -> None:
    for translated in (chatting, generating):
        with suppress(InvalidRequest):
            assert isinstance(translated(**{"options": options, **fields}), Generation)
