"""Everything at once against a running gateway, for minutes or days, and one verdict at the end.

    python scripts/soak.py --minutes 10                               starts a gateway of its own
    python scripts/soak.py --minutes 10 --url http://127.0.0.1:8000   uses one that runs; its workers are killed too

Chats, streams, clients that leave, readers that dawdle, requests that are wrong, and a worker killed now and then.
Every request must end in one of the ways that it may, the gateway must answer /healthz all the while, and afterwards
memory, processes and open files must be what they were. Prints figures; the exit code is 0 when all of it held.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

ROOT = Path(__file__).parents[1]
PATIENCE_S = 180.0  # no answer takes so long, on no machine: it is lost
SETTLE_S = 60.0  # what a gateway gets to come to rest, its killed worker started again
CLOSING_S = 2.0  # for the gateway to notice that the last connections are closed
FIRST_KILL_S, KILL_EVERY_S = 15.0, 75.0  # seldom enough for a worker to count as stable in between
REFUSED_S = 1.0  # what a client waits that was refused
MEMORY_GROWTH = 1.25  # of the gateway's own process, from a tenth of the time to the end ...
MEMORY_ROOM_MB = 16.0  # ... and what it may take besides
FILES_ROOM = 8

#: Statuses that are an honest no under load, when a worker was killed, and while it is started again.
REFUSALS = (429, 503, 504)
QUESTION = [{"role": "user", "content": "Say something about the sea."}]
WRONG: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"{", 400),
    (b"[1, 2]", 400),
    (b'{"messages": 5}', 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": 9}', 400),
    (b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": -1}', 400),
    (b'{"messages": [{"role": "nobody", "content": "x"}]}', 400),
    (b'{"model": "no such model", "messages": [{"role": "user", "content": "x"}]}', 404),
    (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    (b"\xff\xfe\x00", 400),
]


class Soak:
    """The traffic, and what came of it. `faults` is what must not have happened."""

    def __init__(self, url: str, gateway: psutil.Process | None, model: str, seconds: float) -> None:
        self._url, self._gateway, self._model = url, gateway, model
        self._began, self._seconds = time.monotonic(), seconds
        self._chance = random.Random(0)
        self.endings: Counter[str] = Counter()
        self.faults: list[str] = []
        self.first_s: list[float] = []  # of streams: to the first chunk
        self.whole_s: list[float] = []  # of answers: to the end
        self.health_s: list[float] = []
        self.kills = 0
        self.memory_mb: list[float] = []

    @property
    def _goes_on(self) -> bool:
        return time.monotonic() - self._began < self._seconds

    async def run(self, clients: int) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE_S) as self._http:
            before = self._inventory()
            async with asyncio.TaskGroup() as group:
                for number in range(clients):
                    group.create_task(self._again_and_again(self._client, pause_s=0.05 * number))
                group.create_task(self._again_and_again(self._look, pause_s=1.0))
                if self._gateway is not None:
                    group.create_task(self._kill_now_and_then())
            await self._settle()
        await asyncio.sleep(CLOSING_S)
        self._compare(before)

    async def _kill_now_and_then(self) -> None:
        await asyncio.sleep(min(FIRST_KILL_S, self._seconds / 2))
        await self._again_and_again(self._kill, pause_s=KILL_EVERY_S)

    async def _again_and_again(self, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while self._goes_on:
            await work()
            await asyncio.sleep(min(pause_s, max(0.0, self._began + self._seconds - time.monotonic())))

    # --- what clients do

    async def _client(self) -> None:
        kinds = (self._chat, self._stream, self._stream, self._leave, self._dawdle, self._be_wrong)
        kind = self._chance.choice(kinds)
        try:
            ending = await kind()
        except (httpx.TimeoutException, TimeoutError):
            ending = "no end"
        except httpx.HTTPError as error:
            ending = f"cut off: {type(error).__name__}"
        self.endings[ending] += 1
        if ending.startswith("refused"):
            await asyncio.sleep(REFUSED_S)
        if ending.startswith(("no end", "cut off", "unexpected")):
            self.faults.append(f"{kind.__name__.strip('_')}: {ending}")

    async def _chat(self) -> str:
        began = time.monotonic()
        response = await self._http.post("/v1/chat/completions", json=self._body(stream=False))
        if response.status_code != 200:
            return _refusal(response.status_code, response.content)
        if not response.json()["choices"][0]["finish_reason"]:
            return "unexpected: an answer without its end"
        self.whole_s.append(time.monotonic() - began)
        return "answered"

    async def _stream(self) -> str:
        began = time.monotonic()
        async with self._http.stream("POST", "/v1/chat/completions", json=self._body()) as response:
            if response.status_code != 200:
                return _refusal(response.status_code, await response.aread())
            frames: list[str] = []
            async for frame in _frames(response):
                if not frames:
                    self.first_s.append(time.monotonic() - began)
                frames.append(frame)
        self.whole_s.append(time.monotonic() - began)
        return _ending(frames)

    async def _leave(self) -> str:
        stay = self._chance.randrange(6)  # 0: before anything came
        async with self._http.stream("POST", "/v1/chat/completions", json=self._body(max_tokens=200)) as response:
            if response.status_code != 200:
                return _refusal(response.status_code, await response.aread())
            async for _ in _frames(response):
                if stay == 0:
                    break
                stay -= 1
        return "left"

    async def _dawdle(self) -> str:
        """Read a stream slowly, and hang up halfway."""
        body = json.dumps(self._body(max_tokens=200)).encode()
        async with self._socket() as (reader, writer):
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            for _ in range(20):
                async with asyncio.timeout(PATIENCE_S):
                    if not await reader.read(64):
                        break
                await asyncio.sleep(0.1)
        return "dawdled"

    async def _be_wrong(self) -> str:
        content, status = self._chance.choice(WRONG)
        response = await self._http.post("/v1/chat/completions", content=content)
        if response.status_code == status and "message" in response.json()["error"]:
            return "told what was wrong"
        return f"unexpected: {response.status_code} for {content[:60]!r}"

    def _body(self, *, stream: bool = True, max_tokens: int | None = None) -> dict[str, Any]:
        tokens = max_tokens or self._chance.randint(1, 48)
        return {"model": self._model, "messages": QUESTION, "stream": stream, "max_tokens": tokens}

    @asynccontextmanager
    async def _socket(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        where = urlsplit(self._url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    # --- what else happens, and what is looked at

    async def _look(self) -> None:
        began = time.monotonic()
        response = await self._http.get("/healthz")
        self.health_s.append(time.monotonic() - began)
        if response.status_code != 200:
            self.faults.append(f"/healthz said {response.status_code}")
        if self._gateway is not None:
            self.memory_mb.append(self._gateway.memory_info().rss / 2**20)

    async def _kill(self) -> None:
        assert self._gateway is not None
        if workers := _workers(self._gateway):
            with suppress(psutil.Error):
                self._chance.choice(workers).kill()
                self.kills += 1

    async def _settle(self) -> None:
        """Wait until every model is ready and nothing runs."""
        until = time.monotonic() + SETTLE_S
        while True:
            models = (await self._http.get("/readyz")).json()["models"]
            busy = [row["model"] for row in models if row["running"] or row["waiting"]]
            lost = [row["model"] for row in models if row["engine"]["state"] != "ready"]
            if not busy and not lost:
                return
            if time.monotonic() > until:
                self.faults.append(f"does not come to rest: busy {busy}, not ready {lost}")
                return
            await asyncio.sleep(0.5)

    def _inventory(self) -> tuple[int, int]:
        """Processes and open files of the gateway."""
        if self._gateway is None:
            return 0, 0
        open_files = getattr(self._gateway, "num_handles" if sys.platform == "win32" else "num_fds")
        return 1 + len(self._gateway.children(recursive=True)), open_files()

    def _compare(self, before: tuple[int, int]) -> None:
        after = self._inventory()
        self.left = f"processes {before[0]} -> {after[0]}, open files {before[1]} -> {after[1]}"
        if after[0] > before[0] or after[1] > before[1] + FILES_ROOM:
            self.faults.append(f"left over: {self.left}")
        if self.memory_mb:
            first, last = self.memory_mb[len(self.memory_mb) // 10], self.memory_mb[-1]
            if last > first * MEMORY_GROWTH + MEMORY_ROOM_MB:
                self.faults.append(f"memory grew from {first:.0f} to {last:.0f} MiB")

    def report(self) -> str:
        lines = [f"{self.endings.total()} requests in {self._seconds / 60:g} minutes, {self.kills} workers killed:"]
        lines += [f"  {count:7} {ending}" for ending, count in self.endings.most_common()]
        for name, seconds in (("first chunk", self.first_s), ("answer", self.whole_s), ("/healthz", self.health_s)):
            lines.append(f"{name}: {_spread(seconds)}")
        if self.memory_mb:
            tenth = self.memory_mb[len(self.memory_mb) // 10]
            lines.append(f"gateway's memory: {tenth:.0f} MiB after a tenth, {self.memory_mb[-1]:.0f} MiB at the end")
            lines.append(self.left)
        reasons = Counter(self.faults).most_common(10)
        lines.append("FAIL: " + "; ".join(f"{count} x {what}" for what, count in reasons) if reasons else "PASS")
        return "\n".join(lines)


async def _frames(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def _ending(frames: list[str]) -> str:
    """How a stream ended: with [DONE] or with one error frame, and nothing after either."""
    if not frames:
        return "unexpected: an empty stream"
    *before, last = frames
    if "[DONE]" in before or any("error" in json.loads(frame) for frame in before):
        return "unexpected: something after the end"
    if last == "[DONE]":
        return "answered"
    error = json.loads(last).get("error")
    return f"failed midway: {error['code']}" if error else "unexpected: a stream without an end"


def _refusal(status: int, content: bytes) -> str:
    code = json.loads(content)["error"]["code"]
    return f"refused: {status} {code}" if status in REFUSALS else f"unexpected: {status} {code}"


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    ranked = sorted(seconds)
    return ", ".join(
        f"{name} {ranked[min(len(ranked) - 1, int(len(ranked) * share))] * 1000:.0f} ms"
        for name, share in (("half within", 0.5), ("95 % within", 0.95), ("all within", 1.0))
    )


def _workers(gateway: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in gateway.children():
        with suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def _listening(url: str) -> psutil.Process | None:
    """The process behind `url`, where that is on this machine and may be looked at."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            address: Any = connection.laddr or None
            listens = address is not None and connection.status == psutil.CONN_LISTEN
            if listens and address.port == urlsplit(url).port and connection.pid:
                return psutil.Process(connection.pid)
    return None


@contextmanager
def _own_gateway(faults: list[str]) -> Iterator[str]:
    """The URL of a gateway of the usual configuration; it must end well when it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # on Windows, to be sent Ctrl-Break
    )
    assert process.stdout is not None
    with closing(process.stdout):
        try:
            yield next(found[1] for line in process.stdout if (found := re.search(r"(http://\S+:\d+)/v1", line)))
            process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
            if code := process.wait(SETTLE_S):
                faults.append(f"the gateway ended with exit code {code}")
        finally:
            process.kill()
            process.wait()


def _models(url: str) -> list[str]:
    until = time.monotonic() + PATIENCE_S
    while True:
        models = httpx.get(f"{url}/readyz", timeout=PATIENCE_S).json()["models"]
        if ready := [row["model"] for row in models if row["engine"]["state"] == "ready"]:
            return ready
        if time.monotonic() > until:
            raise SystemExit("soak: no model is ready")
        time.sleep(0.2)


def soak(url: str, minutes: float, clients: int) -> Soak:
    run = Soak(url, _listening(url), _models(url)[0], minutes * 60)
    asyncio.run(run.run(clients))
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--url", help="of a running gateway; without it one is started")
    parser.add_argument("--clients", type=int, default=8, help="requests at once")
    options = parser.parse_args()
    if options.url:
        run = soak(options.url.rstrip("/").removesuffix("/v1"), options.minutes, options.clients)
    else:
        at_the_end: list[str] = []
        with _own_gateway(at_the_end) as url:
            run = soak(url, options.minutes, options.clients)
        run.faults += at_the_end
    print(run.report())
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
