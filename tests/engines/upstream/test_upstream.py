"""UpstreamEngine against a gateway, and against servers that send the bytes of a test."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.config.tables import Script, ScriptedModel, UpstreamModel
from gateway.engines.factory import make_engine
from gateway.engines.upstream.engine import UpstreamEngine
from gateway.errors import (
    ConfigError,
    ContextLengthExceeded,
    GatewayError,
    InvalidRequest,
    ModelNotReady,
    QueueFull,
    UpstreamFailed,
    UpstreamRefused,
)
from gateway.generation import (
    Chat,
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    Message,
    Meter,
    ReasoningDelta,
    Started,
    Text,
    TextDelta,
    TokenIds,
    ToolCallDelta,
    Usage,
)
from tests.support.engines import event_stream, events_of
from tests.support.server import Running, config_of, scripted, serving

CHAT = Chat(messages=(Message(role="user", content="Hi"),))


def request(prompt: Any = CHAT, **fields: Any) -> Generation:
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


# --- a gateway as server


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
        ticks = itertools.count()
        meter = Meter(clock=lambda: float(next(ticks)))
        events = await events_of(engine, request(logprobs=1), meter)
        assert events[0] == Started(prompt_tokens=0)
        assert text_of(events) == "It is Paris."
        assert events[-2] == ChoiceFinished("stop")
        assert isinstance(events[-1], Finished)
        assert events[-1].usage == Usage(prompt_tokens=1, completion_tokens=4)
        assert (meter.prompt_tokens, meter.completion_tokens, meter.call_since) == (1, 4, None)
        assert meter.first_token_at is not None and 0 < meter.device_s < next(ticks)
        entries = [entry for event in events if isinstance(event, TextDelta) for entry in event.logprobs]
        assert [(entry.token, entry.top[0].token) for entry in entries] == [(t, t) for t in ("It", " is", " Paris.")]
        assert "".join(bytes(entry.bytes).decode() for entry in entries) == "It is Paris."

        events = await events_of(engine, request(stop=("Paris",), n=2))
        assert [text_of(events, choice) for choice in (0, 1)] == ["It is ", "It is "]
        assert sum(isinstance(event, ChoiceFinished) for event in events) == 2
        assert (await events_of(engine, request(max_tokens=1)))[-2] == ChoiceFinished("length")


async def test_closed_stream_cancels_request_on_server(gateway: Running) -> None:
    async with engine_of(f"{gateway.url}/v1", upstream_model="endless") as engine:
        async with aclosing(event_stream(engine, request(max_tokens=5000))) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
        async with asyncio.timeout(60):
            while any(lane.running for lane in gateway.app.state.router.status()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("model", ["paris", "endless", "narrow", "breaks"])
async def test_no_generator_is_left_to_the_garbage_collector(gateway: Running, model: str) -> None:
    """httpcore does not close its own inner generators, which only wrap each other."""
    dropped: list[str] = []
    finalize = sys.get_asyncgen_hooks().finalizer
    assert finalize is not None

    def note(generator: AsyncGenerator[Any, None]) -> None:
        dropped.append(generator.__qualname__)
        finalize(generator)

    sys.set_asyncgen_hooks(finalizer=note)
    async with engine_of(f"{gateway.url}/v1", upstream_model=model) as engine:
        with suppress(GatewayError):
            async with aclosing(event_stream(engine, request(max_tokens=20))) as events:
                async for event in events:
                    if isinstance(event, TextDelta):
                        break
        with suppress(GatewayError):
            await events_of(engine, request(max_tokens=20))
    gc.collect()
    assert not {name for name in dropped if not re.match(r"(AsyncHTTP11Connection|HTTP11\w+|PoolByteStream)\.", name)}


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("narrow", ContextLengthExceeded, "maximum context length is 4"),
        ("unknown", UpstreamFailed, "does not have that model"),
        ("breaks", UpstreamFailed, "It fell over"),
    ],
)
async def test_gateway_refusal_is_mapped(gateway: Running, model: str, error: type[GatewayError], message: str) -> None:
    async with engine_of(f"{gateway.url}/v1", upstream_model=model) as engine:
        with pytest.raises(error, match=message):
            await events_of(engine, request(Chat(messages=(Message(role="user", content="a b c d e f"),))))


async def test_full_queue_upstream_is_queue_full(gateway: Running) -> None:
    async with engine_of(f"{gateway.url}/v1", upstream_model="full") as engine:
        first = asyncio.create_task(events_of(engine, request()))
        async with asyncio.timeout(60):
            while not any(lane.running for lane in gateway.app.state.router.status()):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        with pytest.raises(QueueFull) as refused:
            await events_of(engine, request())
        assert refused.value.retry_after_s is not None and refused.value.retry_after_s >= 1
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


# --- servers that send fixed bytes


class Raw:
    """Sends the same bytes to every request, and records the requests."""

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


def error_response(status: str, *headers: str, **fields: Any) -> bytes:
    return response(
        status, json.dumps({"error": {"message": "From the server.", **fields}}).encode(), "application/json", *headers
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
        events = await events_of(engine, request())
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
        events = await events_of(engine, request())
    assert text_of(events) == "a b"
    assert events[-2] == ChoiceFinished("stop")
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.completion_tokens == 2


@pytest.mark.parametrize("most", [0, 1])
async def test_alternatives_that_were_not_requested_are_left_out(most: int) -> None:
    top = [{"token": token, "logprob": -1.0} for token in "abc"]
    found = {"content": [{"token": "a", "logprob": -1.0, "top_logprobs": top}]}
    piece = {"index": 0, "delta": {"content": "a"}, "logprobs": found}
    async with raw(frames({"choices": [piece]}, chunk("stop"))) as (engine, _):
        events = await events_of(engine, request(logprobs=most))
    (delta,) = (event for event in events if isinstance(event, TextDelta))
    assert [entry.token for entry in delta.logprobs[0].top] == ["a"][:most]


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
        events = await events_of(engine, request(Text("Once"), logprobs=2, stop=("END",)))
        await events_of(engine, request(TokenIds((1, 2))))
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
    ("sent", "error", "message"),
    [
        pytest.param(
            error_response("400 Bad", code="context_length_exceeded"),
            ContextLengthExceeded,
            "From the server",
            id="400 code too long",
        ),
        pytest.param(
            error_response("400 Bad", type="exceed_context_size_error"),
            ContextLengthExceeded,
            "From the server",
            id="400 type too long",
        ),
        pytest.param(error_response("400 Bad", param="tools"), InvalidRequest, "From the server", id="400 param"),
        pytest.param(error_response("422 Bad"), InvalidRequest, "From the server", id="422"),
        pytest.param(error_response("401 No"), UpstreamRefused, "key", id="401"),
        pytest.param(error_response("403 No"), UpstreamRefused, "key", id="403"),
        pytest.param(error_response("404 No"), UpstreamRefused, "model or endpoint", id="404"),
        pytest.param(error_response("409 No"), UpstreamRefused, "From the server", id="409"),
        pytest.param(error_response("418 No", code="teapot"), UpstreamRefused, "From the server", id="418"),
        pytest.param(
            frames({"error": {"message": "bad grammar", "code": 400}}),
            UpstreamRefused,
            "bad grammar",
            id="400 in stream",
        ),
        pytest.param(error_response("429 No", "retry-after: 7"), QueueFull, "busy", id="429"),
        pytest.param(
            error_response("429 No", message="Request too large for m on tokens per min."),
            InvalidRequest,
            "too large for m",
            id="429 for ever, of OpenAI",
        ),
        pytest.param(
            error_response("429 No", message="It needs 9 tokens, so a retry never succeeds."),
            InvalidRequest,
            "a retry never succeeds",
            id="429 for ever, of a gateway",
        ),
        pytest.param(error_response("500 No"), UpstreamFailed, "From the server", id="500"),
        pytest.param(
            error_response("503 No", "retry-after: soon"), UpstreamFailed, "From the server", id="503 retry-after text"
        ),
        pytest.param(response("500 No", b"<html>"), UpstreamFailed, "failed", id="500 html"),
        pytest.param(b"nonsense\r\n\r\n", UpstreamFailed, "cannot be reached", id="no http"),
        pytest.param(b"", UpstreamFailed, "cannot be reached", id="no answer"),
        pytest.param(frames(), UpstreamFailed, "in the middle", id="no chunks"),
        pytest.param(frames(chunk(content="a"), done=False), UpstreamFailed, "in the middle", id="no done"),
        pytest.param(frames(chunk(content="a"), "{broken"), UpstreamFailed, "not OpenAI's API", id="broken json"),
        pytest.param(frames("[1, 2]"), UpstreamFailed, "not OpenAI's API|in the middle", id="json list"),
        pytest.param(
            frames({"choices": [{"index": 0, "delta": {"tool_calls": [3]}}]}),
            UpstreamFailed,
            ".",
            id="invalid tool call",
        ),
        pytest.param(
            frames(chunk(content="a"), {"error": {"message": "Fell over."}}),
            UpstreamFailed,
            "Fell over",
            id="error chunk",
        ),
        pytest.param(frames(chunk(content="a"))[:-40], UpstreamFailed, "broke the connection", id="cut body"),
    ],
)
async def test_server_failure_is_mapped(sent: bytes, error: type[GatewayError], message: str) -> None:
    async with raw(sent) as (engine, _):
        with pytest.raises(error, match=message) as failed:
            await events_of(engine, request())
    if b"retry-after: 7" in sent:
        assert failed.value.retry_after_s == 7
    if b'"tools"' in sent:
        assert failed.value.param == "tools"


async def test_stalled_reader_stops_the_read_and_the_device_time() -> None:
    meter, draining = Meter(), asyncio.Event()
    events: list[Event] = []

    class StalledReader:
        def __call__(self, event: Event) -> None:
            events.append(event)

        def begin(self) -> None: ...

        async def drain(self) -> None:
            draining.set()
            await asyncio.Event().wait()

    async with raw(frames(*(chunk(content="a") for _ in range(1000)), chunk("stop"))) as (engine, _):
        task = asyncio.create_task(engine.run(await engine.prepare(request()), meter, StalledReader()))
        await asyncio.wait_for(draining.wait(), 60)
        assert events == [Started(prompt_tokens=0), TextDelta("a")]
        assert meter.call_since is None  # the time until the reader continues is not the server's
        task.cancel()
        await asyncio.wait([task])


async def test_silent_server_is_upstream_failed() -> None:
    disconnected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()
        disconnected.set()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with engine_of(f"http://127.0.0.1:{port}/v1", watchdog_s=0.2) as engine:
            with pytest.raises(UpstreamFailed, match="silent"):
                await events_of(engine, request())
        await asyncio.wait_for(disconnected.wait(), 60)


async def test_unreachable_server_is_upstream_failed() -> None:
    async with engine_of("http://127.0.0.1:9/v1") as engine:
        with pytest.raises(UpstreamFailed, match="cannot be reached"):
            await events_of(engine, request())
    with pytest.raises(ModelNotReady):
        await events_of(engine, request())


async def test_organization_of_environment_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "key-secret")
    async with raw(frames(chunk("stop"))) as (engine, server):
        await events_of(engine, request())
    ((_, _, headers),) = server.requests
    assert "secret" not in str(headers)


def test_missing_url_is_config_error() -> None:
    with pytest.raises(ConfigError, match=r"models\.m\.url"):
        make_engine("m", UpstreamModel(), Path("models"))
