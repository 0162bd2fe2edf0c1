"""What a gateway does with engines that are slow by script, so that processor time is no limit.

Throughput with one, two and four servers behind one model; and what a client waits while another one floods the model.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from contextlib import ExitStack, suppress
from typing import NamedTuple

from processes import running_gateway
from report import spread, table

from proxying.client import Connection, chat, connections, percentile

_SCRIPTED = """\
[models.engine]
engine = "scripted"
max_sequences = 4
queue = 100
[models.engine.script]
replies = ["1 1 1 1 1 1 1 1"]
repeat = true
context_length = 1000000
ttft_s = {ttft_s}
token_s = {token_s}
"""
_MODEL = """\
[models.{name}]
engine = "upstream"
targets = {targets}
upstream_model = "engine"
max_sequences = 64
queue = 100
"""
_FLOODED = """\
[models.engine]
engine = "upstream"
url = "http://127.0.0.1:{port}/v1"
max_sequences = 4
queue = 100
[server.api_keys]
calm = "{calm}"
flood = "{flood}"
[limits.keys.flood]
concurrent_requests = {limit}
"""
CALM, FLOOD = "sk-calm-4b1f7a2c9d8e6035", "sk-flood-9e2d4c6b8a1f3057"
TARGETS = (1, 2, 4)
Bars = dict[str, dict[str, float]]


class Sizes(NamedTuple):
    rounds: int
    servers: int  # processes with scripted engines; with fewer than four, several targets are one of them
    seconds: float  # of each measurement
    ttft_s: float
    token_s: float
    calm: int  # requests of the client that does not flood, in each round


QUICK = Sizes(1, 1, 0.2, 0.004, 0.001, 2)
FULL = Sizes(3, 4, 4.0, 0.05, 0.01, 20)
_CLIENTS = 16
_TOKENS = 20  # of each answer
_LONG, _SHORT = 60, 5  # tokens of an answer for the client that floods, and for the other one
_LIMITS = ('"unlimited"', "3", "2", "1")
_LIMIT = "requests at once of the key that floods"
_AGAIN_S = 0.05  # after a refusal


def throughput(sizes: Sizes) -> tuple[str, Bars]:
    """The section about tokens a second with one, two and four targets."""
    with ExitStack() as stack:
        scripted = _SCRIPTED.format(ttft_s=sizes.ttft_s, token_s=sizes.token_s)
        ports = [stack.enter_context(running_gateway(scripted))[1] for _ in range(sizes.servers)]
        urls = [f"http://127.0.0.1:{ports[number % len(ports)]}/v1?{number}" for number in range(max(TARGETS))]
        models = "".join(_MODEL.format(name=f"targets-{count}", targets=urls[:count]) for count in TARGETS)
        _, port = stack.enter_context(running_gateway(models))
        found = asyncio.run(_all_targets(sizes, port))
    one = statistics.median(found[1])
    goals = {1: "", 2: "1.9", 4: "3.6"}
    rows = [
        [str(count), spread(values, 0), f"{statistics.median(values) / one:.2f}", goals[count]]
        for count, values in found.items()
    ]
    how = (
        f"{_CLIENTS} clients at once, each with one request of {_TOKENS} tokens after another. {_engine(sizes)} "
        f"Median and range of {sizes.rounds} rounds of {sizes.seconds:g} s."
    )
    bars = {"tokens/s": {f"targets: {count}": statistics.median(values) for count, values in found.items()}}
    return f"{how}\n\n{table(['targets', 'tokens/s', 'times one target', 'goal'], rows)}", bars


async def _all_targets(sizes: Sizes, port: int) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {count: [] for count in TARGETS}
    texts = (f"question {number}" for number in itertools.count())  # no two have a common prefix
    for _ in range(sizes.rounds):
        for count in TARGETS:
            tokens_per_s = await _busy(
                port, [chat(f"targets-{count}", next(texts), _TOKENS) for _ in range(2000)], sizes.seconds
            )
            found[count].append(tokens_per_s)
    return found


async def _busy(port: int, requests: list[bytes], seconds: float) -> float:
    """Tokens a second, after some time that is not measured."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 1.5 * seconds

    async with connections(port, _CLIENTS) as made:

        async def client(connection: Connection) -> None:
            while loop.time() < end:
                await connection.stream(requests.pop())

        async def counted() -> int:
            await asyncio.sleep(seconds / 2)
            before = sum(each.count for each in made)
            await asyncio.sleep(end - loop.time())
            return sum(each.count for each in made) - before

        clients = asyncio.gather(*map(client, made))
        tokens = await counted()
        await clients
    return tokens / seconds


def flood(sizes: Sizes) -> tuple[str, Bars]:
    """The section about the first token of a client with and without another one that floods the model."""
    with ExitStack() as stack:
        scripted = _SCRIPTED.format(ttft_s=sizes.ttft_s, token_s=sizes.token_s)
        _, engine = stack.enter_context(running_gateway(scripted))
        found = {}
        for limit in _LIMITS:
            keys = {"calm": CALM, "flood": FLOOD, "limit": limit}
            _, port = stack.enter_context(running_gateway(_FLOODED.format(port=engine, **keys)))
            found[limit] = asyncio.run(_floods(sizes, port))
    rows = [[limit.strip('"'), *_flooded(alone, flooded)] for limit, (alone, flooded) in found.items()]
    how = (
        f"One API key has {_CLIENTS} requests of {_LONG} tokens in progress at any time, or tries to. Another one "
        f"sends requests of {_SHORT} tokens, one after another: {sizes.rounds * sizes.calm} alone and as many with the "
        f"flood, in turn. The gateway admits four requests at once. {_engine(sizes)} The goal is at most twice the p95."
    )
    head = [_LIMIT, "first token alone, p95 ms", "with the flood, p50 ms", "with the flood, p95 ms", "p95, times"]
    return f"{how}\n\n{table(head, rows)}", {
        "p95 of the first token, ms": {
            "alone": percentile(found[_LIMITS[0]][0], 95),
            **{f"limit {limit.strip(chr(34))}": percentile(flooded, 95) for limit, (_, flooded) in found.items()},
        }
    }


def _engine(sizes: Sizes) -> str:
    return (
        f"Each server has four slots and one device, which makes one call at a time: {1000 * sizes.ttft_s:g} ms for a "
        f"prompt, {1000 * sizes.token_s:g} ms for a token."
    )


def _flooded(alone: list[float], flooded: list[float]) -> list[str]:
    p95, with_flood = percentile(alone, 95), percentile(flooded, 95)
    return [f"{p95:.0f}", f"{percentile(flooded, 50):.0f}", f"{with_flood:.0f}", f"{with_flood / p95:.2f}"]


async def _floods(sizes: Sizes, port: int) -> tuple[list[float], list[float]]:
    """Milliseconds to the first token of each request of the calm client, alone and with the other one, in turn."""
    alone: list[float] = []
    flooded: list[float] = []
    for _ in range(sizes.rounds):
        alone += await _calm(port, sizes.calm)
        floods = [asyncio.create_task(_flood(port, number)) for number in range(_CLIENTS)]
        await asyncio.sleep(10 * sizes.ttft_s)  # until the queue is full of them
        flooded += await _calm(port, sizes.calm)
        for each in floods:
            each.cancel()
        await asyncio.wait(floods)
    return alone, flooded


async def _calm(port: int, requests: int) -> list[float]:
    async with connections(port, 1) as (connection,):
        return [
            (await connection.stream(chat("engine", f"calm {number}", _SHORT, CALM))).first
            for number in range(requests)
        ]


async def _flood(port: int, number: int) -> None:
    """One request after another, until it is cancelled."""
    while True:
        with suppress(RuntimeError):  # refused
            async with connections(port, 1) as (connection,):
                while True:
                    await connection.stream(chat("engine", f"flood {number}", _LONG, FLOOD))
        await asyncio.sleep(_AGAIN_S)
