"""Several servers behind one model: which one answers, and what the client gets if some of them fail."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from gateway.config.tables import UpstreamModel, UpstreamTarget
from gateway.engines.upstream import engine as upstream_engine
from gateway.engines.upstream import reach
from gateway.engines.upstream.attempt import Attempt
from gateway.engines.upstream.client import HttpClient
from gateway.engines.upstream.engine import UpstreamEngine
from gateway.engines.upstream.targets import health, silence, target
from gateway.engines.upstream.targets.target import Target
from gateway.errors import (
    ConfigError,
    ContextLengthExceeded,
    GatewayError,
    InvalidRequest,
    QueueFull,
    UpstreamFailed,
    UpstreamRefused,
)
from gateway.generation import Chat, Event, Generation, Message, Meter, Started, Text, TextDelta
from tests.support.engines import events_of
from tests.support.hostile import HEAD, chunk, stream
from tests.support.processes import free_port

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def request(text: str = "Hi", **fields: Any) -> Generation:
    return Generation(id="r", model="m", prompt=Chat(messages=(Message(role="user", content=text),)), **fields)


class Server:
    """Answers each chat with `answer`: bytes, or a coroutine function. `models` is the reply to `GET /models`."""

    def __init__(self, answer: bytes | Script = b"", models: bytes = b"") -> None:
        self.answer, self.models = answer, models
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[bytes] = []
        self.hangs = False  # also for probes
        self.port = 0
        self.open = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.open -= 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if self.hangs and head.startswith(b"GET"):
            await hang(reader, writer)
        if head.startswith(b"GET"):
            writer.write(self.models or status("404 Not Found"))
            await writer.drain()
            return
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        self.bodies.append(json.loads(await reader.readexactly(int(length.partition(b":")[2]))))
        self.heads.append(head)
        if callable(self.answer):
            await self.answer(reader, writer)
        else:
            writer.write(self.answer)
            await writer.drain()


def status(line: str, message: str = "From the server.", **headers: str) -> bytes:
    body = json.dumps({"error": {"message": message}}).encode()
    lines = [f"HTTP/1.1 {line}", "content-type: application/json", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


GOOD = stream(chunk(content="good"), chunk("stop"))


@asynccontextmanager
async def servers(*answers: bytes | Script, **fields: Any) -> AsyncIterator[tuple[UpstreamEngine, list[Server]]]:
    """A model with a server for each answer."""
    async with AsyncExitStack() as stack:
        found = [Server(answer) for answer in answers]
        for each in found:
            listener = await stack.enter_async_context(await asyncio.start_server(each.serve, "127.0.0.1", 0))
            each.port = listener.sockets[0].getsockname()[1]
        model = UpstreamModel(targets=tuple(each.url for each in found), **fields)
        engine = UpstreamEngine("m", model)
        await engine.start()
        stack.push_async_callback(engine.aclose)
        yield engine, found


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the client closes the connection."""
    await reader.read()


def impatient_with(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """These targets are given up soon. The others may be slow, as on a busy machine."""

    def attempt(name: str, target: Target, question: Any, watchdog_s: float, meter: Meter, **options: Any) -> Attempt:
        return Attempt(name, target, question, 0.05 if target.number in numbers else watchdog_s, meter, **options)

    monkeypatch.setattr(upstream_engine, "Attempt", attempt)


async def silent_after_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + b": nothing\n\n")
    await hang(reader, writer)


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        status("500 Internal Server Error"),
        status("503 Service Unavailable"),
        status("429 Too Many Requests", retry_after="1"),
        status("401 Unauthorized"),
        status("404 Not Found"),
        status("302 Found", location="http://127.0.0.1:1/"),
        status("400 Bad Request", "maximum context length is 4"),
        status("413 Request Entity Too Large"),
        b"garbage\r\n\r\n",
        HEAD + b"data: garbage\n\n",
        stream("not an object"),
        stream({"error": {"message": "It fell over."}}),
        stream(chunk(role="assistant"), {"error": {"message": "Later."}}),
        stream(chunk(role="assistant"), done=False),
        stream(),
    ],
)
async def test_failure_before_the_content_moves_to_another_server(bad: bytes) -> None:
    async with servers(bad, GOOD) as (engine, (first, second)):
        for count in range(1, 5):
            events = await events_of(engine, request(f"{count}"))
            assert text_of(events) == "good"
            assert sum(isinstance(event, Started) for event in events) == 1
            assert len(second.bodies) == count
        assert len(first.bodies) >= 1


async def test_silence_before_the_content_moves_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    impatient_with(monkeypatch, 1, 2)
    async with servers(hang, silent_after_head, GOOD) as (engine, found):
        for count in range(1, 4):
            assert text_of(await events_of(engine, request())) == "good"
            assert len(found[2].bodies) == count


async def test_server_that_hangs_is_given_up_long_before_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    check = reach.check

    def checked(client: HttpClient, server: UpstreamTarget, _: float) -> Awaitable[tuple[str, reach.Level]]:
        return check(client, server, 0.01 if server.url == first.url else 60.0)

    monkeypatch.setattr(silence, "PATIENCE_S", 0.01)
    monkeypatch.setattr(reach, "check", checked)
    async with servers(hang, GOOD) as (engine, (first, second)):
        first.hangs = True
        assert text_of(await events_of(engine, request())) == "good"
        assert engine.status.targets[0].state == "down"
        assert len(first.bodies) == len(second.bodies) == 1


async def test_server_that_computes_without_answering_probes_has_its_time_if_no_other_one_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(silence, "PATIENCE_S", 0.01)
    monkeypatch.setattr(target, "PROBE_S", 0.01)

    async def compute(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.write(GOOD)

    async with servers(compute, b"") as (engine, (first, _)):
        first.hangs = True
        engine.targets[1].health.failed("is off")
        assert text_of(await events_of(engine, request())) == "good" and len(first.bodies) == 1


async def test_mistake_of_the_request_is_not_sent_to_another_server() -> None:
    async with servers(status("400 Bad Request"), GOOD) as (engine, (_, second)):
        with pytest.raises(InvalidRequest, match="From the server"):
            await events_of(engine, request())
        assert second.bodies == []
        assert [each.state for each in engine.status.targets] == ["up", "up"]


TOO_LONG = status("400 Bad Request", "maximum context length is 4")


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ((status("500 X"), b""), UpstreamFailed),
        ((status("500 X"), status("429 X", retry_after="7")), QueueFull),
        ((TOO_LONG, status("429 X")), QueueFull),
        ((TOO_LONG, b""), ContextLengthExceeded),
        ((TOO_LONG, TOO_LONG), ContextLengthExceeded),
        ((status("401 X"), status("401 X")), UpstreamRefused),
        ((status("401 X"), b""), UpstreamFailed),
    ],
)
async def test_client_gets_one_error_if_all_servers_fail(answers: tuple[bytes, bytes], error: type[Exception]) -> None:
    async with servers(*answers) as (engine, found):
        with pytest.raises(GatewayError) as raised:
            await events_of(engine, request())
        assert isinstance(raised.value, error)
        assert isinstance(raised.value, UpstreamRefused) == (error is UpstreamRefused)
        assert [len(each.bodies) for each in found] == [1, 1]


async def test_client_waits_for_the_server_that_is_free_first() -> None:
    async with servers(status("429 X", retry_after="9"), status("429 X", retry_after="2")) as (engine, _):
        with pytest.raises(QueueFull) as raised:
            await events_of(engine, request())
        assert raised.value.retry_after_s == 2


async def test_request_that_no_server_can_answer_puts_none_out() -> None:
    async with servers(status("500 X"), stream("garbage")) as (engine, _):
        for _ in range(3):
            with pytest.raises(UpstreamFailed):
                await events_of(engine, request())
        assert [each.state for each in engine.status.targets] == ["up", "up"]


async def test_break_after_the_content_counts_against_the_model_only_if_no_server_is_left() -> None:
    cut = stream(chunk(content="a"), done=False)
    async with servers(cut, cut) as (engine, _):
        errors = []
        for _ in range(2):
            with pytest.raises(UpstreamFailed) as caught:
                await events_of(engine, request())
            errors.append(caught.value)
    assert [isinstance(error, UpstreamRefused) for error in errors] == [True, False]
    assert errors[0].message == errors[1].message


async def test_break_after_the_content_is_one_error_and_puts_the_server_out() -> None:
    cut = stream(chunk(content="a"), done=False)
    async with servers(cut, GOOD) as (engine, (_, second)):
        with pytest.raises(UpstreamFailed, match="in the middle"):
            await events_of(engine, request())
        assert second.bodies == [] and engine.status.targets[0].state == "down"
        assert text_of(await events_of(engine, request())) == "good"


async def test_server_that_is_down_gets_no_request_of_a_user_before_it_answers_one_of_the_gateway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 0.01)
    async with servers(status("500 X"), GOOD) as (engine, (first, second)):
        assert text_of(await events_of(engine, request())) == "good"
        assert engine.status.targets[0].state == "down"
        await until(lambda: len(first.bodies) == 2)
        assert (
            first.bodies[1]["messages"] == [{"role": "user", "content": "Hello"}] and first.bodies[1]["max_tokens"] == 4
        )
        await until(lambda: engine.status.targets[0].state == "trial")  # it has its models, and no user needs it now
        assert len(first.bodies) == 2
        first.answer = GOOD
        assert text_of(await events_of(engine, request())) == "good" and len(second.bodies) == 2
        await until(lambda: engine.status.targets[0].state == "up")
        for _ in range(2):
            await events_of(engine, request())
        assert len(first.bodies) == 3 + 1


async def test_trial_uses_the_endpoint_of_the_last_request_and_a_judgement_is_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 0.01)
    async with servers(status("500 X"), stream({"choices": [{"text": "good", "finish_reason": "stop"}]})) as (
        engine,
        found,
    ):
        completion = Generation(id="r", model="m", prompt=Text("Hi"))
        await events_of(engine, completion)
        found[0].answer = status("400 Bad Request", "max_tokens must be at least 16")
        await until(lambda: engine.status.targets[0].state == "up")
        assert found[0].bodies[-1]["prompt"] == "Hello"


async def test_request_goes_to_the_server_with_the_fewest() -> None:
    async with servers(hang, hang) as (engine, (first, second)):
        waiting = [asyncio.create_task(events_of(engine, request(f"{i}"))) for i in range(5)]
        await until(lambda: len(first.bodies) + len(second.bodies) == 5)
        assert sorted((len(first.bodies), len(second.bodies))) == [2, 3]
        assert sum(each.running for each in engine.status.targets) == 5
        await cancel(waiting)
        assert [each.running for each in engine.status.targets] == [0, 0]
        await until(lambda: first.open == second.open == 0)


async def test_conversation_stays_on_its_server() -> None:
    async with servers(GOOD, GOOD, GOOD) as (engine, found):
        for text in ("a" * 3000, "b" * 3000, "c" * 3000, "d" * 3000):
            for _ in range(3):
                meter = Meter()
                await events_of(engine, request(text), meter)
            assert meter.route.reason == "affinity"
        counts = [len(each.bodies) for each in found]
        assert sum(counts) == 12 and all(count % 3 == 0 for count in counts)


async def test_route_does_not_show_what_another_owner_has_sent() -> None:
    async with servers(GOOD, GOOD) as (engine, _):
        reasons = []
        for owner in ("one", "other", "other"):
            meter = Meter()
            await events_of(engine, request("a" * 3000, owner=owner), meter)
            reasons.append(meter.route.reason)
        assert reasons == ["least-loaded", "least-loaded", "affinity"]


async def test_each_server_gets_its_model_and_its_key() -> None:
    async with servers(GOOD, GOOD) as (_, (first, second)):
        targets = (
            UpstreamTarget(url=first.url, upstream_model="one", api_key="key-of-the-first"),
            UpstreamTarget(url=second.url),
        )
        model = UpstreamModel(targets=targets, upstream_model="all", api_key="key-of-the-model")
        engine = UpstreamEngine("m", model)
        await engine.start()
        await events_of(engine, request())
        await events_of(engine, request())
        await engine.aclose()
        assert [each.bodies[0]["model"] for each in (first, second)] == ["one", "all"]
        assert b"Bearer key-of-the-first" in first.heads[0] and b"Bearer key-of-the-model" in second.heads[0]


async def test_server_that_leads_back_to_this_gateway_does_not_count() -> None:
    async with servers(GOOD, GOOD) as (engine, (first, _)):
        await events_of(engine, request())
        [hop] = re.findall(rb"via: 1\.1 (\S+)", first.heads[0], re.IGNORECASE)
        with pytest.raises(UpstreamRefused, match="back to this gateway"):
            await engine.prepare(request(hops=(hop.decode(),)))


async def test_name_with_several_addresses_is_reached_at_one_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with servers(GOOD) as (_, (server,)):

        def addresses(*_: Any, **__: Any) -> list[Any]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, server.port)) for ip in ("127.0.0.9", "127.0.0.1")]

        monkeypatch.setattr(socket, "getaddrinfo", addresses)
        client = HttpClient(urlsplit(f"http://rack.example:{server.port}/v1"), "")
        await client.open()
        async with client.get("/models") as reply:
            assert reply.status == 404
        await client.aclose()


async def test_servers_are_checked_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    """A wrong key, or a name that is not in the list, is a warning: some servers take any name, or list no models."""
    async with servers(GOOD, GOOD) as (_, (first, second)):
        first.models = status("401 Unauthorized")
        urls = (first.url, second.url, f"http://127.0.0.1:{free_port()}")
        engine = UpstreamEngine("m", UpstreamModel(targets=urls))
        assert [each.state for each in engine.status.targets] == ["up", "up", "up"]
        await engine.start()
        await until(lambda: engine.status.targets[2].state == "down")
        await until(lambda: "server 1" in caplog.text)
        assert engine.status.targets[2].detail == "does not answer" and not engine.status.is_down
        assert "refuses the key (HTTP 401). Set `api_key` in the model's table" in caplog.text
        assert (
            "does not answer. Start that server, or correct `url`. It gets requests of users again when" in caplog.text
        )
        for _ in range(2):
            await events_of(engine, request())
        assert (len(first.bodies), len(second.bodies)) == (1, 1)
        await engine.aclose()


async def test_requests_are_tried_although_all_servers_are_down() -> None:
    async with servers(GOOD, GOOD) as (_, (first, second)):
        first.models = second.models = status("500 X")
        engine = UpstreamEngine("m", UpstreamModel(targets=(first.url, second.url)))
        await engine.start()
        await until(lambda: engine.status.is_down)
        assert text_of(await events_of(engine, request())) == "good"
        await until(lambda: not engine.status.is_down)
        await engine.aclose()


async def test_request_waits_for_one_server_only_that_does_not_answer_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that are off: each costs seconds until its connection is given up, and a fallback waits."""
    monkeypatch.setattr(health, "FIRST_PAUSE_S", 0.01)
    async with servers(b"", b"", b"", GOOD) as (engine, found):
        for each in found[:3]:
            each.models = status("500 X")
        assert text_of(await events_of(engine, request())) == "good"
        await until(lambda: all(each.health.is_confirmed for each in engine.targets[:3]))
        counts = [len(each.bodies) for each in found]
        found[3].answer = b""
        meter = Meter()
        with pytest.raises(UpstreamFailed):
            await events_of(engine, request(), meter)
        assert meter.route.attempts == 2, "the one that was up, and one more"
        assert sum(len(each.bodies) for each in found) == sum(counts) + 2


def test_key_that_is_not_there_is_a_config_error() -> None:
    model = UpstreamModel(targets=(UpstreamTarget(url="http://h/v1", api_key_env="RACK_KEY"),))
    with pytest.raises(ConfigError, match="'RACK_KEY' is not set"):
        UpstreamEngine("m", model)
