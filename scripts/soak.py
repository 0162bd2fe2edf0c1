"""Stress test of a running gateway, for minutes or days, with one verdict at the end.

    python scripts/soak.py --minutes 10                               starts a separate gateway
    python scripts/soak.py --minutes 10 --url http://127.0.0.1:8000   uses a running one; its workers are killed too

Clients chat, stream, leave, read slowly and send invalid requests, and now and then a worker is killed. Every request
must have one of its allowed endings, and the gateway must answer /healthz all the time. Afterwards memory, processes
and open files must be as before. Prints figures. The exit code is 0 if all checks passed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from soak_traffic import REPLY_S, Traffic

ROOT = Path(__file__).parents[1]
SETTLE_S = 60.0  # limit for the gateway to finish its requests and to start a killed worker again
CLOSING_S = 2.0  # for the gateway to notice that the last connections are closed
FIRST_KILL_S, KILL_EVERY_S = 10.0, 75.0  # rare enough for a worker to count as stable in between
MEMORY_GROWTH = 1.25  # limit for the gateway's own process, from a tenth of the time to the end ...
MEMORY_EXTRA_MB = 16.0  # ... plus this
EXTRA_FILES = 8


class Soak:
    """Runs the traffic, kills workers, and compares the gateway before and after. `faults` lists what went wrong."""

    def __init__(self, url: str, gateway: psutil.Process | None, model: str, seconds: float) -> None:
        self._gateway = gateway
        self._start, self._seconds = time.monotonic(), seconds
        self._random = random.Random(1)
        self._traffic = Traffic(url, model)
        self._http = self._traffic.http
        self.faults = self._traffic.faults
        self.health_s: list[float] = []
        self.kills = 0
        self.memory_mb: list[float] = []

    @property
    def _goes_on(self) -> bool:
        return time.monotonic() - self._start < self._seconds

    async def run(self, clients: int) -> None:
        async with self._http:
            before = self._inventory()
            async with asyncio.TaskGroup() as group:
                for number in range(clients):
                    group.create_task(self._repeat(self._traffic.client, pause_s=0.05 * number))
                group.create_task(self._repeat(self._check_health, pause_s=1.0))
                if self._gateway is not None:
                    group.create_task(self._kill_workers())
            await self._settle()
        await asyncio.sleep(CLOSING_S)
        self._compare(before)

    async def _kill_workers(self) -> None:
        await asyncio.sleep(min(FIRST_KILL_S, self._seconds / 2))
        await self._repeat(self._kill, pause_s=KILL_EVERY_S)

    async def _repeat(self, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while self._goes_on:
            await work()
            await asyncio.sleep(min(pause_s, max(0.0, self._start + self._seconds - time.monotonic())))

    async def _check_health(self) -> None:
        start = time.monotonic()
        response = await self._http.get("/healthz")
        self.health_s.append(time.monotonic() - start)
        if response.status_code != 200:
            self.faults.append(f"/healthz answered {response.status_code}")
        if self._gateway is not None:
            self.memory_mb.append(self._gateway.memory_info().rss / 2**20)

    async def _kill(self) -> None:
        assert self._gateway is not None
        if workers := _workers(self._gateway):
            with suppress(psutil.Error):
                self._random.choice(workers).kill()
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
                self.faults.append(f"does not become idle: busy {busy}, not ready {lost}")
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
        if after[0] > before[0] or after[1] > before[1] + EXTRA_FILES:
            self.faults.append(f"not released: {self.left}")
        if self.memory_mb:
            first, last = self.memory_mb[len(self.memory_mb) // 10], self.memory_mb[-1]
            if last > first * MEMORY_GROWTH + MEMORY_EXTRA_MB:
                self.faults.append(f"memory grew from {first:.0f} to {last:.0f} MiB")

    def report(self) -> str:
        lines = [
            f"{self._traffic.endings.total()} requests in {self._seconds / 60:g} minutes, {self.kills} workers killed:"
        ]
        lines += [f"  {count:7} {ending}" for ending, count in self._traffic.endings.most_common()]
        for name, seconds in (
            ("first chunk", self._traffic.first_s),
            ("response", self._traffic.whole_s),
            ("/healthz", self.health_s),
        ):
            lines.append(f"{name}: {_spread(seconds)}")
        if self.memory_mb:
            tenth = self.memory_mb[len(self.memory_mb) // 10]
            lines.append(f"gateway's memory: {tenth:.0f} MiB after a tenth, {self.memory_mb[-1]:.0f} MiB at the end")
            lines.append(self.left)
        reasons = Counter(self.faults).most_common(10)
        lines.append("FAIL: " + "; ".join(f"{count} x {what}" for what, count in reasons) if reasons else "PASS")
        return "\n".join(lines)


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
    """The process that listens at `url`, if it is on this machine and accessible."""
    with suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            address: Any = connection.laddr or None
            listens = address is not None and connection.status == psutil.CONN_LISTEN
            if listens and address.port == urlsplit(url).port and connection.pid:
                return psutil.Process(connection.pid)
    return None


@contextmanager
def _own_gateway(faults: list[str]) -> Iterator[str]:
    """Start a gateway with the usual configuration and yield its URL. On a signal it must exit with code 0."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows: needed for Ctrl-Break
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
    until = time.monotonic() + REPLY_S
    while True:
        models = httpx.get(f"{url}/readyz", timeout=REPLY_S).json()["models"]
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
    parser.add_argument("--url", help="of a running gateway (default: start one)")
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
