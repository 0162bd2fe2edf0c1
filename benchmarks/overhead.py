"""Cost of the HTTP path: the scripted engine at full speed, through a real socket.

    python benchmarks/overhead.py [--quick] [--write docs/benchmarks.md]

The server runs in a separate process, and its CPU time is counted there. The baseline is the same engine without a
server. The difference is the cost of a streamed token or of a request.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import psutil
from processes import running_gateway
from report import parser, publish, spread, table

from gateway.config.tables import Script, ScriptedModel
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.generation import Event, Generation, Meter, Text

SCRIPT = Script(replies=("word word word word",), repeat=True, context_length=1_000_000)
MODEL = """\
[models.scripted]
engine = "scripted"
max_sequences = 16
[models.scripted.script]
replies = ["word word word word"]
repeat = true
context_length = 1000000
"""
STREAMS = 16
SETTLE_S = 15.0  # after the last client: the last looks at files and memory
REPLY_S = 600  # for one response on a busy machine


def body(tokens: int, stream: bool) -> bytes:
    messages = [{"role": "user", "content": "hello"}]
    fields: dict[str, Any] = {"model": "scripted", "messages": messages, "max_tokens": tokens, "stream": stream}
    return json.dumps(fields).encode()


def send(connection: HTTPConnection, content: bytes) -> bytes:
    connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    return response.read()


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def streamed(port: int, server: psutil.Process, tokens: int) -> tuple[float, float]:
    """Microseconds per chunk: elapsed time, and the server's CPU time."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=REPLY_S)) as connection:
        before_s, began = cpu_s(server), time.perf_counter()
        frames = send(connection, body(tokens, stream=True)).count(b"data: {")
        wall_s, used_s = time.perf_counter() - began, cpu_s(server) - before_s
    assert frames >= tokens, f"{frames} frames for {tokens} tokens"
    return 1e6 * wall_s / frames, 1e6 * used_s / frames


def whole(port: int, server: psutil.Process, requests: int) -> tuple[float, float]:
    """Milliseconds per request of one token: elapsed time (median), and the server's CPU time (mean)."""
    walls, content = [], body(1, stream=False)
    with closing(HTTPConnection("127.0.0.1", port, timeout=REPLY_S)) as connection:
        send(connection, content)
        before_s = cpu_s(server)
        for _ in range(requests):
            began = time.perf_counter()
            send(connection, content)
            walls.append(time.perf_counter() - began)
        used_s = cpu_s(server) - before_s
    return 1e3 * statistics.median(walls), 1e3 * used_s / requests


def together(port: int, server: psutil.Process, tokens: int) -> float:
    """Microseconds of the server's CPU time per chunk, with STREAMS streams at once."""
    before_s, content = cpu_s(server), body(tokens, stream=True)

    def stream(_: int) -> int:
        with closing(HTTPConnection("127.0.0.1", port, timeout=REPLY_S)) as connection:
            return send(connection, content).count(b"data: {")

    with ThreadPoolExecutor(STREAMS) as pool:
        frames = sum(pool.map(stream, range(STREAMS)))
    return 1e6 * (cpu_s(server) - before_s) / frames


def short(port: int, server: psutil.Process, requests: int) -> float:
    """Milliseconds of the server's CPU time per streamed answer of one token."""
    content = body(1, stream=True)
    with closing(HTTPConnection("127.0.0.1", port, timeout=REPLY_S)) as connection:
        send(connection, content)
        before_s = cpu_s(server)
        for _ in range(requests):
            send(connection, content)
        return 1e3 * (cpu_s(server) - before_s) / requests


def idle_wake_ups(server: psutil.Process, settle_s: float, seconds: float) -> int:
    """How often the event loop wakes while no client is connected."""
    time.sleep(settle_s)
    before = server.num_ctx_switches().voluntary
    time.sleep(seconds)
    return server.num_ctx_switches().voluntary - before


class Discard:
    """An Emit without a reader."""

    def __call__(self, event: Event) -> None: ...

    def begin(self) -> None: ...

    async def drain(self) -> None: ...


async def bare(tokens: int) -> float:
    """Microseconds of CPU time per token of the same engine without a server."""
    engine = ScriptedEngine("scripted", ScriptedModel(script=SCRIPT))
    await engine.start()
    generation = Generation(id="bare", model="scripted", prompt=Text("hello"), max_tokens=tokens)
    before_s = time.process_time()
    await engine.run(await engine.prepare(generation), Meter(), Discard())
    return 1e6 * (time.process_time() - before_s) / tokens


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    rounds, tokens, requests = (1, 500, 20) if arguments.quick else (7, 5_000, 500)
    measured = ("wall", "cpu", "bare", "request", "request_cpu", "short", "together")
    found: dict[str, list[float]] = {name: [] for name in measured}
    with running_gateway(MODEL) as (started, port):
        server = psutil.Process(started.process.pid)
        streamed(port, server, tokens // 10)
        for _ in range(rounds):
            found["bare"].append(asyncio.run(bare(tokens)))
            for names, values in (
                (("wall", "cpu"), streamed(port, server, tokens)),
                (("request", "request_cpu"), whole(port, server, requests)),
            ):
                for name, value in zip(names, values, strict=True):
                    found[name].append(value)
            found["short"].append(short(port, server, requests // 2))
            found["together"].append(together(port, server, tokens // STREAMS))
        settle_s, idle_s = (0.0, 1.0) if arguments.quick else (SETTLE_S, 20.0)
        wake_ups = idle_wake_ups(server, settle_s, idle_s)
    over = [cpu - alone for cpu, alone in zip(found["cpu"], found["bare"], strict=True)]
    rows = [
        ["a streamed chunk, elapsed time", f"{spread(found['wall'])} µs", ""],
        ["a streamed chunk, server's CPU time", f"{spread(found['cpu'])} µs", ""],
        ["the scripted engine without a server, CPU time", f"{spread(found['bare'])} µs", ""],
        ["**a streamed chunk minus the bare engine, CPU time**", f"{spread(over)} µs", "under 50 µs"],
        [f"a chunk of {STREAMS} streams at once, server's CPU time", f"{spread(found['together'])} µs", ""],
        ["**a request of one token, elapsed time**", f"{spread(found['request'], 2)} ms", "under 1 ms"],
        ["a request of one token, server's CPU time", f"{spread(found['request_cpu'], 2)} ms", ""],
        ["a streamed answer of one token, server's CPU time", f"{spread(found['short'], 2)} ms", ""],
        [f"**wake-ups of the event loop in {idle_s:.0f} s without a client**", str(wake_ups), "0"],
    ]
    how = f"Median and range of {rounds} rounds: {tokens} streamed tokens, {requests} requests, one after another."
    bars = {
        "µs of CPU time per chunk": {
            "through HTTP": statistics.median(found["cpu"]),
            "bare": statistics.median(found["bare"]),
        }
    }
    publish("overhead", f"{how}\n\n{table(['what', 'cost', 'goal'], rows)}", bars, arguments.write)


if __name__ == "__main__":
    main()
