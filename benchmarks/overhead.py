"""What the HTTP path costs: the scripted engine at full speed, through a real socket, read by another process.

    python benchmarks/overhead.py [--quick] [--write docs/benchmarks.md]

The server runs in a process of its own; its CPU time is counted there. The same engine read without a server is the
base line: what is above it, is what a streamed token or a request costs over the bare engine.
"""

from __future__ import annotations

import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing, closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
from report import ROOT, parser, publish, spread, table

from gateway.config import ScriptedModel
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.generation import Generation, Meter, Text

SCRIPT = {"replies": ["word word word word"], "repeat": True, "context_length": 1_000_000}
CONFIG = """\
[server]
port = {port}
[breaker]
enabled = false
[models.scripted]
engine = "scripted"
[models.scripted.script]
replies = ["word word word word"]
repeat = true
context_length = 1000000
"""
PATIENCE_S = 120


@contextmanager
def served() -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of a gateway that answers from a script."""
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.toml")
        config.write_text(CONFIG.format(port=port), encoding="utf-8")
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                _wait_until_ready(port, process)
                yield port, psutil.Process(process.pid)
            finally:
                process.terminate()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    raise SystemExit("the gateway was not ready in time")


def body(tokens: int, stream: bool) -> bytes:
    messages = [{"role": "user", "content": "hello"}]
    fields: dict[str, Any] = {"model": "scripted", "messages": messages, "max_tokens": tokens, "stream": stream}
    return json.dumps(fields).encode()


def ask(connection: HTTPConnection, content: bytes) -> bytes:
    connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    return answer.read()


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def streamed(port: int, server: psutil.Process, tokens: int) -> tuple[float, float]:
    """Microseconds a chunk: of the clock, and of the server's CPU."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        before_s, began = cpu_s(server), time.perf_counter()
        frames = ask(connection, body(tokens, stream=True)).count(b"data: {")
        wall_s, used_s = time.perf_counter() - began, cpu_s(server) - before_s
    assert frames >= tokens, f"{frames} frames for {tokens} tokens"
    return 1e6 * wall_s / frames, 1e6 * used_s / frames


def whole(port: int, server: psutil.Process, requests: int) -> tuple[float, float]:
    """Milliseconds a request of one token: of the clock (median), and of the server's CPU (mean)."""
    walls, content = [], body(1, stream=False)
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        ask(connection, content)
        before_s = cpu_s(server)
        for _ in range(requests):
            began = time.perf_counter()
            ask(connection, content)
            walls.append(time.perf_counter() - began)
        used_s = cpu_s(server) - before_s
    return 1e3 * statistics.median(walls), 1e3 * used_s / requests


async def bare(tokens: int) -> float:
    """Microseconds of CPU a token of the same engine costs by itself."""
    engine = ScriptedEngine("scripted", ScriptedModel(script=SCRIPT))
    await engine.start()
    generation = Generation(id="bare", model="scripted", prompt=Text("hello"), max_tokens=tokens)
    before_s = time.process_time()
    async with aclosing(engine.stream(generation, Meter())) as events:
        async for _ in events:
            pass
    return 1e6 * (time.process_time() - before_s) / tokens


def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    rounds, tokens, requests = (1, 500, 20) if arguments.quick else (7, 10_000, 500)
    found: dict[str, list[float]] = {name: [] for name in ("wall", "cpu", "bare", "request", "request_cpu")}
    with served() as (port, server):
        streamed(port, server, tokens // 10)
        for _ in range(rounds):
            found["bare"].append(asyncio.run(bare(tokens)))
            for names, values in (
                (("wall", "cpu"), streamed(port, server, tokens)),
                (("request", "request_cpu"), whole(port, server, requests)),
            ):
                for name, value in zip(names, values, strict=True):
                    found[name].append(value)
    over = [cpu - alone for cpu, alone in zip(found["cpu"], found["bare"], strict=True)]
    rows = [
        ["a streamed chunk, clock", f"{spread(found['wall'])} µs", ""],
        ["a streamed chunk, server's CPU", f"{spread(found['cpu'])} µs", ""],
        ["the scripted engine by itself, CPU", f"{spread(found['bare'])} µs", ""],
        ["**a streamed chunk over the bare engine, CPU**", f"{spread(over)} µs", "under 200 µs"],
        ["**a request of one token, clock**", f"{spread(found['request'], 2)} ms", "under 2 ms"],
        ["a request of one token, server's CPU", f"{spread(found['request_cpu'], 2)} ms", ""],
    ]
    how = f"Median and range of {rounds} rounds: {tokens} streamed tokens, {requests} requests one after another."
    bars = {
        "µs of CPU a chunk": {"through HTTP": statistics.median(found["cpu"]), "bare": statistics.median(found["bare"])}
    }
    publish("overhead", f"{how}\n\n{table(['what', 'cost', 'goal'], rows)}", bars, arguments.write)


if __name__ == "__main__":
    main()
