"""The upstream engine against a gateway of ours, and against servers that answer whatever a test says."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from gateway.config import Script, ScriptedModel, UpstreamModel
from gateway.engines.factory import make_engine
from gateway.engines.upstream.body import chat_body, completion_body
from gateway.engines.upstream.engine import _ERRORS, UpstreamEngine, gateway_error
from gateway.errors import (
    ConfigError,
    ContextLengthExceeded,
    GatewayError,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    UnsupportedParameter,
    UpstreamFailed,
)
from gateway.generation import (
    Chat,
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    Grammar,
    Message,
    Meter,
    ReasoningDelta,
    Started,
    Text,
    TextDelta,
    TokenIds,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from gateway.sampling import Sampling
from tests.support.engines import event_stream, events_of
from tests.support.server import Running, config_of, scripted, serving

CHAT = Chat(messages=(Message(role="user", content="Hi"),))


def ask(prompt: Any = CHAT, **fields: Any) -> Generation:
    return Generation(id="r", model="m", prompt=prompt, **fields)


@asynccontextmanager
async def engine_of(url: str, **fields: Any) -> AsyncIterator[UpstreamEngine]:
    engine = UpstreamEngine("m", UpstreamModel(url=url, **fields))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.aclose()


def text_of(events: list[Event], choice: int = 0) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta) and event.choice == choice)


# --- a gateway of ours


@pytest.fixture(scope="module")
def gateway() -> Iterator[Running]:
    models = {
        "paris": scripted("It is Paris."),
        "endless": scripted("word", repeat=True, token_s=0.01, context_length=100_000),
        "narrow": scripted("x", context_length=4),
        "full": ScriptedModel(max_sequences=1, queue=0, script=Script(ttft_s=30.0)),
        "breaks": scripted("a b c d", faults=[{"after": 2, "error": "EngineFailed", "message": "It fell over."}]),
    }
    with serving(config_of(models)) as running:
        yield running


async def test_gateway_as_upstream_server(gateway: Running) -> None:
    async with engine_of(f"{gateway.url}/v1", upstream_model="paris") as engine:
        meter, began = Meter(), time.monotonic()
        events = await events_of(engine, ask(logprobs=1), meter)
        assert events[0] == Started(prompt_tokens=0)
        assert text_of(events) == "It is Paris."
        assert events[-2] == ChoiceFinished("stop")
        assert isinstance(events[-1], Finished)
        assert events[-1].usage == Usage(prompt_tokens=1, completion_tokens=4)
        assert (meter.prompt_tokens, meter.completion_tokens, meter.call_since) == (1, 4, None)
        assert meter.first_token_at is not None and 0 < meter.device_s < time.monotonic() - began
        entries = [entry for event in events if isinstance(event, TextDelta) for entry in event.logprobs]
        assert [(entry.token, entry.top[0].token) for entry in entries] == [(t, t) for t in ("It", " is", " Paris.")]
        assert "".join(bytes(entry.bytes).decode() for entry in entries) == "It is Paris."

        events = await events_of(engine, ask(stop=("Paris",), n=2))
        assert [text_of(events, choice) for choice in (0, 1)] == ["It is ", "It is "]
        assert sum(isinstance(event, ChoiceFinished) for event in events) == 2
        assert (await events_of(engine, ask(max_tokens=1)))[-2] == ChoiceFinished("length")


async def test_closed_stream_cancels_request_on_server(gateway: Running) -> None:
    async with engine_of(f"{gateway.url}/v1", upstream_model="endless") as engine:
        async with aclosing(event_stream(engine, ask(max_tokens=5000))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        async with asyncio.timeout(5):
            while any(lane.running for lane in gateway.app.state.router.status()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        ("narrow", ContextLengthExceeded, "maximum context length is 4"),
        ("nobody", UpstreamFailed, "does not have that model"),
        ("breaks", UpstreamFailed, "It fell over"),
    ],
)
async def test_gateway_refusal_is_mapped(gateway: Running, model: str, error: type[GatewayError], words: str) -> None:
    async with engine_of(f"{gateway.url}/v1", upstream_model=model) as engine:
        with pytest.raises(error, match=words):
            await events_of(engine, ask(Chat(messages=(Message(role="user", content="a b c d e f"),))))


async def test_full_queue_upstream_is_queue_full(gateway: Running) -> None:
    async with engine_of(f"{gateway.url}/v1", upstream_model="full") as engine:
        first = asyncio.create_task(events_of(engine, ask()))
        async with asyncio.timeout(10):
            while not any(lane.running for lane in gateway.app.state.router.status()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        with pytest.raises(QueueFull) as refused:
            await events_of(engine, ask())
        assert refused.value.retry_after_s is not None and refused.value.retry_after_s >= 1
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


# --- servers that answer what they are told


class Raw:
    """Answers every request with the same bytes, and remembers what it was asked."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.strip().split("\r\n")
        headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.requests.append((line.split()[1], json.loads(body), headers))
        writer.write(self.answer)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def raw(answer: bytes, **fields: Any) -> AsyncIterator[tuple[UpstreamEngine, Raw]]:
    handler = Raw(answer)
    async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with engine_of(f"http://127.0.0.1:{port}/v1", **fields) as engine:
            yield engine, handler


def response(status: str, body: bytes, content_type: str = "application/json", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {content_type}", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


def error(status: str, *headers: str, **fields: Any) -> bytes:
    return response(
        status, json.dumps({"error": {"message": "Said so.", **fields}}).encode(), "application/json", *headers
    )


def frames(*chunks: Any, done: bool = True) -> bytes:
    sent = [f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}\n\n" for chunk in chunks]
    return response("200 OK", "".join([*sent, "data: [DONE]\n\n" if done else ""]).encode(), "text/event-stream")


def chunk(finish: str | None = None, *, index: int | None = 0, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


async def test_chat_chunks_become_reasoning_tools_and_usage() -> None:
    calls = [
        [{"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a":'}}],
        [{"index": 0, "function": {"arguments": "1}"}}],
        [{"function": {"name": "g", "arguments": "{}"}, "index": 1}],  # no id
    ]
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 7,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2, "accepted_prediction_tokens": 3},
    }
    stream = frames(
        chunk(role="assistant", content=""),
        chunk(reasoning_content="Hm. "),
        chunk(reasoning="Yes."),
        *(chunk(tool_calls=call) for call in calls),
        chunk("tool_calls"),
        {"choices": [], "usage": usage},
    )
    async with raw(stream) as (engine, _):
        events = await events_of(engine, ask())
    assert events[1:3] == [ReasoningDelta("Hm. "), ReasoningDelta("Yes.")]
    first, second, third, fourth = events[3:7]
    assert first == ToolCallDelta(index=0, id="c1", name="f")
    assert second == ToolCallDelta(index=0, arguments='{"a":')
    assert third == ToolCallDelta(index=0, arguments="1}")
    assert isinstance(fourth, ToolCallDelta)
    assert (fourth.index, fourth.name, fourth.arguments) == (1, "g", "{}")
    assert fourth.id is not None and fourth.id.startswith("call_")
    assert events[7] == ChoiceFinished("tool_calls")
    assert isinstance(events[8], Finished)
    assert events[8].usage == Usage(
        prompt_tokens=9, cached_tokens=4, completion_tokens=7, reasoning_tokens=2, accepted_prediction_tokens=3
    )


async def test_missing_optional_fields_get_defaults() -> None:
    async with raw(frames(chunk(content="a", index=None), chunk(content=" b"), chunk("eos"))) as (engine, _):
        events = await events_of(engine, ask())
    assert text_of(events) == "a b"
    assert events[-2] == ChoiceFinished("stop")
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.completion_tokens == 2


async def test_completion_chunks_become_text_and_logprobs() -> None:
    stream = frames(
        {
            "choices": [
                {
                    "index": 0,
                    "text": "é x東",
                    "finish_reason": None,
                    "logprobs": {
                        "tokens": ["é", " x", r"bytes:\xe6\x9d", r"bytes:\xb1"],
                        "token_logprobs": [-0.5, None, -1.0, -2.0],
                        "top_logprobs": [{"é": -0.5, "e": -2.0}, None, None, None],
                    },
                }
            ]
        },
        {"choices": [{"index": 0, "text": "", "finish_reason": "stop", "stop_reason": "END"}]},
    )
    async with raw(stream, upstream_model="up", api_key="k") as (engine, server):
        events = await events_of(engine, ask(Text("Once"), logprobs=2, stop=("END",)))
        await events_of(engine, ask(TokenIds((1, 2))))
    assert text_of(events) == "é x東"
    (delta,) = [event for event in events if isinstance(event, TextDelta)]
    assert [(entry.token, bytes(entry.bytes), entry.logprob) for entry in delta.logprobs] == [
        ("é", "é".encode(), -0.5),
        (" x", b" x", 0.0),
        ("\ufffd", b"\xe6\x9d", -1.0),
        ("\ufffd", b"\xb1", -2.0),
    ]
    assert [entry.token for entry in delta.logprobs[0].top] == ["é", "e"]
    assert events[-2] == ChoiceFinished("stop", stop="END")
    (path, body, headers), (_, tokens, _) = server.requests
    assert (path, headers["authorization"]) == ("/v1/completions", "Bearer k")
    assert (body["model"], body["prompt"], body["logprobs"], body["stop"]) == ("up", "Once", 2, ["END"])
    assert tokens["prompt"] == [1, 2]


@pytest.mark.parametrize(
    ("sent", "kind", "words"),
    [
        (error("400 Bad", code="context_length_exceeded"), ContextLengthExceeded, "Said so"),
        (error("400 Bad", type="exceed_context_size_error"), ContextLengthExceeded, "Said so"),
        (error("400 Bad", param="tools"), InvalidRequest, "Said so"),
        (error("422 Bad"), InvalidRequest, "Said so"),
        (error("401 No"), UpstreamFailed, "key"),
        (error("403 No"), UpstreamFailed, "key"),
        (error("404 No"), UpstreamFailed, "model or endpoint"),
        (error("409 No"), UpstreamFailed, "Said so"),
        (error("418 No"), UpstreamFailed, "Said so"),
        (error("429 No", "retry-after: 7"), QueueFull, "busy"),
        (error("500 No"), UpstreamFailed, "Said so"),
        (error("503 No", "retry-after: soon"), UpstreamFailed, "Said so"),
        (response("500 No", b"<html>"), UpstreamFailed, "failed"),
        (b"nonsense\r\n\r\n", UpstreamFailed, "cannot be reached"),
        (b"", UpstreamFailed, "cannot be reached"),
        (frames(), UpstreamFailed, "in the middle"),
        (frames(chunk(content="a"), done=False), UpstreamFailed, "in the middle"),
        (frames(chunk(content="a"), "{broken"), UpstreamFailed, "not OpenAI's API"),
        (frames("[1, 2]"), UpstreamFailed, "not OpenAI's API|in the middle"),
        (frames({"choices": [{"index": 0, "delta": {"tool_calls": [3]}}]}), UpstreamFailed, "."),
        (frames(chunk(content="a"), {"error": {"message": "Fell over."}}), UpstreamFailed, "Fell over"),
        (frames(chunk(content="a"))[:-40], UpstreamFailed, "broke the connection"),
    ],
)
async def test_server_failure_is_mapped(sent: bytes, kind: type[GatewayError], words: str) -> None:
    async with raw(sent) as (engine, _):
        with pytest.raises(kind, match=words) as failed:
            await events_of(engine, ask())
    if b"retry-after: 7" in sent:
        assert failed.value.retry_after_s == 7
    if b'"tools"' in sent:
        assert failed.value.param == "tools"


async def test_silent_server_is_upstream_failed() -> None:
    left = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        left.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with engine_of(f"http://127.0.0.1:{port}/v1", watchdog_s=0.2) as engine:
            with pytest.raises(UpstreamFailed, match="silent"):
                await events_of(engine, ask())
        await asyncio.wait_for(left.wait(), 5)


async def test_unreachable_server_is_upstream_failed() -> None:
    async with engine_of("http://127.0.0.1:9/v1") as engine:
        with pytest.raises(UpstreamFailed, match="cannot be reached"):
            await events_of(engine, ask())
    with pytest.raises(ModelNotReady):
        await events_of(engine, ask())


async def test_organization_of_environment_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "key-secret")
    async with raw(frames(chunk("stop"))) as (engine, server):
        await events_of(engine, ask())
    ((_, _, headers),) = server.requests
    assert "secret" not in str(headers)


def test_missing_url_is_config_error() -> None:
    with pytest.raises(ConfigError, match=r"models\.m\.url"):
        make_engine("m", UpstreamModel(), Path("models"))


def test_every_exported_exception_is_mapped() -> None:
    exported = {found for _, found in inspect.getmembers(openai, inspect.isclass) if issubclass(found, Exception)}
    assert {found for found in exported if not found.__name__.startswith("_")} == set(_ERRORS)
    assert isinstance(gateway_error(openai.OpenAIError(), "m"), GatewayError)


# --- what is sent


def test_plain_chat_body_is_minimal() -> None:
    assert chat_body(ask(), CHAT) == {
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 64,
        "stream_options": {"include_usage": True},
    }


def test_chat_body_with_every_field() -> None:
    tool = Tool(name="f", description="does", parameters={"type": "object"}, strict=True)
    call = ToolCall("c1", "f", "{}")
    chat = Chat(
        messages=(
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="1", tool_call_id="c1", name="f"),
        ),
        tools=(tool,),
        tool_choice=ToolChoice(mode="required", names=("f",), parallel=False),
        reasoning_effort="low",
        template_kwargs={"x": 1},
    )
    generation = ask(
        chat,
        sampling=Sampling(temperature=0.0, top_k=5, min_p=0.1, seed=3, repetition_penalty=1.1, logit_bias={7: -100.0}),
        max_tokens=5,
        min_tokens=2,
        ignore_eos=True,
        stop=("a", "b"),
        n=2,
        logprobs=0,
        grammar=Grammar(kind="json_schema", source='{"type": "object"}'),
        prediction="p",
    )
    body = chat_body(generation, chat)
    function = {"name": "f", "description": "does", "parameters": {"type": "object"}, "strict": True}
    assert body["messages"] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "1", "name": "f", "tool_call_id": "c1"},
    ]
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert body["parallel_tool_calls"] is False
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert body["prediction"] == {"type": "content", "content": "p"}
    expected = {"temperature": 0.0, "top_k": 5, "min_p": 0.1, "seed": 3, "repetition_penalty": 1.1, "n": 2}
    expected |= {"max_tokens": 5, "min_tokens": 2, "ignore_eos": True, "stop": ["a", "b"], "logprobs": True}
    expected |= {"logit_bias": {7: -100.0}, "reasoning_effort": "low", "chat_template_kwargs": {"x": 1}}
    assert {name: body[name] for name in expected} == expected
    assert "top_logprobs" not in body and "presence_penalty" not in body


def test_tool_choice_of_chat_body() -> None:
    def choice(**fields: Any) -> Any:
        chat = Chat(messages=CHAT.messages, tools=(Tool(name="f"),), tool_choice=ToolChoice(**fields))
        return chat_body(ask(chat), chat)["tool_choice"]

    assert [choice(mode=mode) for mode in ("auto", "none", "required")] == ["auto", "none", "required"]
    allowed = choice(mode="auto", names=("f", "g"))
    assert (allowed["type"], allowed["allowed_tools"]["mode"]) == ("allowed_tools", "auto")


def test_parameter_without_api_field_is_refused() -> None:
    with pytest.raises(UnsupportedParameter, match="regex"):
        chat_body(ask(grammar=Grammar(kind="regex", source="a")), CHAT)
    assert chat_body(ask(grammar=Grammar(kind="json_object")), CHAT)["response_format"] == {"type": "json_object"}
    with pytest.raises(UnsupportedParameter):
        completion_body(ask(Text("a"), grammar=Grammar(kind="json_object")), Text("a"))
    with pytest.raises(UnsupportedParameter):
        completion_body(ask(Text("a"), prompt_logprobs=True), Text("a"))
