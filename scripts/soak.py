"""Stress test of a running gateway, for minutes or days, with one verdict at the end.

    python scripts/soak.py --minutes 10                               starts a separate gateway
    python scripts/soak.py --minutes 10 --url http://127.0.0.1:8000   uses a running one; its workers are killed too
    python scripts/soak.py --minutes 10 --hostile                     what other clients feel of a hostile client

Clients chat, stream, leave, read slowly and send invalid requests, and now and then a worker is killed. Every request
must have one of its allowed endings, and the gateway must answer /healthz all the time. Afterwards memory, processes
and open files must be as before. Prints figures. The exit code is 0 if all checks passed.

With `--hostile`, the clients only chat and stream, first alone for up to two minutes, then together with a client that
runs the attacks of soak_hostile.py. All of their requests must be answered, the 95th percentile of their time to first
token may double at most, no worker may restart, and no breaker may open.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
from soak_gateway import SETTLE_S, inventory, listening, own_gateway, ready_models, workers
from soak_traffic import Traffic

HOSTILE = str(Path(__file__).with_name("soak_hostile.py"))
CLOSING_S = 2.0  # for the gateway to notice that the last connections are closed
IDLE_S = 120.0  # for the gateway to end processes that are idle
FIRST_KILL_S, KILL_EVERY_S = 10.0, 75.0  # rare enough for a worker to count as stable in between
MEMORY_GROWTH = 1.25  # limit for the gateway's own process, from a tenth of the time to the end ...
MEMORY_EXTRA_MB = 16.0  # ... plus this
HOSTILE_MEMORY_MB = 50.0  # limit of the growth, at any time, when a hostile client is there
ALONE_S = 120.0  # at most, for the clients without the hostile one
HOSTILE_TTFT = 2.0  # limit for the 95th percentile, relative to the clients alone
EXTRA_FILES = 8


class Soak:
    """Runs the traffic, and compares the gateway before and after. `faults` lists what went wrong.

    Args:
        gateway: the process, if it is on this machine.
        kills: kill a worker now and then.
        well_behaved: the clients only chat and stream.
        attackers: attacks of the hostile client that run at once.
    """

    def __init__(
        self,
        url: str,
        gateway: psutil.Process | None,
        model: str,
        seconds: float,
        *,
        kills: bool = True,
        well_behaved: bool = False,
        attackers: int = 0,
    ) -> None:
        self._gateway, self._kills_workers, self._attackers = gateway, kills, attackers
        self._start, self._seconds = time.monotonic(), seconds
        self._random = random.Random(1)
        self.traffic = Traffic(url, model, well_behaved=well_behaved)
        self._hostile_command = [sys.executable, HOSTILE, url, model, str(seconds), str(attackers)]
        self._hostile_replies: dict[str, int] = {}
        self._http = self.traffic.http
        self.faults = self.traffic.faults
        self.health_s: list[float] = []
        self.kills = 0
        self.memory_mb: list[float] = []
        self.left = ""

    @property
    def _goes_on(self) -> bool:
        return time.monotonic() - self._start < self._seconds

    async def run(self, clients: int) -> None:
        async with self._http:
            await self.traffic.start_grammars()
            before = await self._state()
            async with asyncio.TaskGroup() as group:
                for number in range(clients):
                    client = partial(self.traffic.client, f"program {number}")
                    group.create_task(self._repeat(client, pause_s=0.05 * number))
                if self._attackers:
                    group.create_task(self._attack())
                group.create_task(self._repeat(self._check_health, pause_s=1.0))
                if self._gateway is not None and self._kills_workers:
                    group.create_task(self._kill_workers())
            await self._settle()
            counts = await self._counts()
        await asyncio.sleep(CLOSING_S)
        await self._wait_for_processes(before[0][0])
        self._compare(before, counts)

    async def _wait_for_processes(self, number: int) -> None:
        """Processes for long texts and slow grammars end when they have been idle."""
        for _ in range(int(IDLE_S)):
            if self._gateway is None or inventory(self._gateway)[0] <= number:
                return
            await asyncio.sleep(1)

    async def _attack(self) -> None:
        process = await asyncio.create_subprocess_exec(*self._hostile_command, stdout=subprocess.PIPE)
        output, _ = await process.communicate()
        if process.returncode:
            self.faults.append(f"the hostile client ended with exit code {process.returncode}")
        else:
            self._hostile_replies = json.loads(output)

    async def _kill_workers(self) -> None:
        await asyncio.sleep(min(FIRST_KILL_S, self._seconds / 2))
        await self._repeat(self._kill, pause_s=KILL_EVERY_S)

    async def _repeat(self, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
        while self._goes_on:
            await work()
            await asyncio.sleep(min(pause_s, max(0.0, self._start + self._seconds - time.monotonic())))

    async def _check_health(self) -> None:
        start = time.monotonic()
        try:
            status = (await self._http.get("/healthz")).status_code
        except httpx.HTTPError as error:
            self.faults.append(f"/healthz: {type(error).__name__}")
            return
        self.health_s.append(time.monotonic() - start)
        if status != 200:
            self.faults.append(f"/healthz answered {status}")
        if self._gateway is not None:
            self.memory_mb.append(self._gateway.memory_info().rss / 2**20)

    async def _kill(self) -> None:
        assert self._gateway is not None
        if running := workers(self._gateway):
            with suppress(psutil.Error):
                self._random.choice(running).kill()
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

    async def _state(self) -> tuple[tuple[int, int], tuple[float, float]]:
        held = inventory(self._gateway) if self._gateway is not None else (0, 0)
        return held, await self._counts()

    async def _counts(self) -> tuple[float, float]:
        """Restarts of workers, and the number of times that a breaker opened, since the gateway started."""
        metrics = (await self._http.get("/metrics")).text
        restarts = re.findall(r"^gateway_worker_restarts_total\{.*\} (\S+)$", metrics, re.MULTILINE)
        opened = re.findall(r'^gateway_breaker_changes_total\{.*state="open"\} (\S+)$', metrics, re.MULTILINE)
        return sum(map(float, restarts)), sum(map(float, opened))

    def _compare(self, before: tuple[tuple[int, int], tuple[float, float]], counts: tuple[float, float]) -> None:
        self._compare_held(before[0])
        if not self._kills_workers:
            for what, old, new in zip(("worker restarts", "breaker openings"), before[1], counts, strict=True):
                if new > old:
                    self.faults.append(f"{what}: {new - old:g}")
        if self._attackers:
            growth = max(self.memory_mb, default=0.0) - (self.memory_mb[0] if self.memory_mb else 0.0)
            if growth > HOSTILE_MEMORY_MB:
                self.faults.append(f"the gateway's memory grew by {growth:.0f} MiB")
        elif self.memory_mb:
            first, last = self.memory_mb[len(self.memory_mb) // 10], self.memory_mb[-1]
            if last > first * MEMORY_GROWTH + MEMORY_EXTRA_MB:
                self.faults.append(f"memory grew from {first:.0f} to {last:.0f} MiB")

    def _compare_held(self, before: tuple[int, int]) -> None:
        after = inventory(self._gateway) if self._gateway is not None else (0, 0)
        self.left = f"processes {before[0]} -> {after[0]}, open files {before[1]} -> {after[1]}"
        if after[0] > before[0] or after[1] > before[1] + EXTRA_FILES:
            self.faults.append(f"not released: {self.left}")

    def report(self) -> str:
        """The figures, without the verdict."""
        total, killed = self.traffic.endings.total(), self.kills
        lines = [f"{total} requests in {self._seconds / 60:g} minutes, {killed} workers killed:"]
        lines += [f"  {count:7} {ending}" for ending, count in self.traffic.endings.most_common()]
        for name, seconds in (
            ("first chunk", self.traffic.first_s),
            ("response", self.traffic.whole_s),
            ("/healthz", self.health_s),
        ):
            lines.append(f"{name}: {_spread(seconds)}")
        if self.memory_mb:
            most, tenth = max(self.memory_mb), self.memory_mb[len(self.memory_mb) // 10]
            lines.append(
                f"gateway's memory: {self.memory_mb[0]:.0f} MiB at the start, {tenth:.0f} MiB after a tenth, "
                f"{most:.0f} MiB at most, {self.memory_mb[-1]:.0f} MiB at the end"
            )
            lines.append(self.left)
        if self._attackers:
            lines.append("the hostile client's replies: ")
            lines += [f"  {count:7} {status}" for status, count in sorted(self._hostile_replies.items())]
        return "\n".join(lines)


def _share(seconds: list[float], share: float) -> float:
    ranked = sorted(seconds)
    return ranked[min(len(ranked) - 1, int(len(ranked) * share))]


def _spread(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    shares = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
    return ", ".join(f"{name} {_share(seconds, share) * 1000:.0f} ms" for name, share in shares)


def soak(url: str, minutes: float, clients: int) -> list[str]:
    """Run the mixed traffic, print its figures. Returns the faults."""
    run = Soak(url, listening(url), ready_models(url)[0], minutes * 60)
    asyncio.run(run.run(clients))
    print(run.report(), flush=True)
    return run.faults


def hostile(url: str, minutes: float, clients: int, attackers: int) -> list[str]:
    """Run well-behaved clients alone, then with the hostile client; print the figures of both. Returns the faults."""
    gateway, model = listening(url), ready_models(url)[0]
    alone = Soak(url, gateway, model, min(minutes * 30, ALONE_S), kills=False, well_behaved=True)
    asyncio.run(alone.run(clients))
    print("alone:", alone.report(), sep="\n", flush=True)
    attacked = Soak(url, gateway, model, minutes * 60, kills=False, well_behaved=True, attackers=attackers)
    asyncio.run(attacked.run(clients))
    print("with the hostile client:", attacked.report(), sep="\n", flush=True)
    faults = alone.faults + attacked.faults
    if alone.traffic.first_s and attacked.traffic.first_s:
        ratio = _share(attacked.traffic.first_s, 0.95) / _share(alone.traffic.first_s, 0.95)
        print(f"95th percentile of the time to first token: {ratio:.2f} times that of the clients alone")
        if ratio > HOSTILE_TTFT:
            faults.append(f"the time to first token grew {ratio:.2f} times")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--url", help="of a running gateway (default: start one)")
    parser.add_argument("--clients", type=int, help="requests at once (default: 8; with --hostile 4)")
    parser.add_argument("--hostile", action="store_true", help="compare with and without a hostile client")
    parser.add_argument("--attackers", type=int, default=3, help="attacks at once (default: 3)")
    options = parser.parse_args()

    def run(url: str) -> list[str]:
        if options.hostile:
            return hostile(url, options.minutes, options.clients or 4, options.attackers)
        return soak(url, options.minutes, options.clients or 8)

    if options.url:
        faults = run(options.url.rstrip("/").removesuffix("/v1"))
    else:
        at_the_end: list[str] = []
        with own_gateway(at_the_end, kills=not options.hostile) as url:
            faults = run(url)
        faults += at_the_end
    reasons = Counter(faults).most_common(10)
    print("FAIL: " + "; ".join(f"{count} x {what}" for what, count in reasons) if reasons else "PASS")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
