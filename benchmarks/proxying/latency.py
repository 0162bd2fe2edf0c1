"""What a proxy adds to each chunk and to the first token of a stream, and the CPU time that it uses for them."""

from __future__ import annotations

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil
from processes import running_gateway
from report import spread, table

from proxying.client import one_after_another, percentile, streams
from proxying.servers import MODEL, litellm, scripted_server

GATEWAY = """\
[models.scripted]
engine = "upstream"
url = "http://127.0.0.1:{port}/v1"
max_sequences = 64
"""
DIRECT, OURS, LITELLM = "directly", "npu-gateway", "LiteLLM"
PERCENTILES = (50, 95, 99)


class Load(NamedTuple):
    """`together` streams at once, each with `chunks`, one each `every_ms`."""

    together: int
    chunks: int
    every_ms: int


class Server(NamedTuple):
    name: str
    port: int
    process: psutil.Process | None  # None: its CPU time does not count


class Sizes(NamedTuple):
    rounds: int
    loads: tuple[Load, ...]
    requests: int


QUICK = Sizes(1, (Load(1, 20, 1), Load(2, 10, 2)), 3)
FULL = Sizes(5, (Load(1, 300, 5), Load(16, 75, 20)), 100)

#: What was measured -> name of the server -> a value of each round, in milliseconds.
Found = dict[str, dict[str, list[float]]]


def measure(sizes: Sizes, program: Path | None) -> tuple[str, dict[str, dict[str, float]]]:
    """The section's text, and its bars.

    Args:
        program: LiteLLM's; None: it is left out.
    """
    with ExitStack() as stack:
        target = stack.enter_context(scripted_server())
        ours, port = stack.enter_context(running_gateway(GATEWAY.format(port=target)))
        servers = [Server(DIRECT, target, None), Server(OURS, port, psutil.Process(ours.process.pid))]
        if program is not None:
            theirs, port = stack.enter_context(litellm(program, target))
            servers.append(Server(LITELLM, port, psutil.Process(theirs.process.pid)))
        found = asyncio.run(_rounds(sizes, servers))
    return _text(sizes, found), _bars(found)


async def _rounds(sizes: Sizes, servers: Sequence[Server]) -> Found:
    found: Found = defaultdict(lambda: defaultdict(list))
    for server in servers:  # the first requests of a process are slow
        await one_after_another(server.port, MODEL, sizes.requests)
        await streams(server.port, MODEL, *sizes.loads[-1])
    for _ in range(sizes.rounds):
        for load in sizes.loads:
            for server in servers:
                await _chunks(found, server, load)
        for server in servers:
            await _requests(found, server, sizes.requests)
    return found


async def _chunks(found: Found, server: Server, load: Load) -> None:
    what = f"a chunk of {load.together} stream{'s' * (load.together > 1)}"
    before_s = _cpu_s(server)
    answers = await streams(server.port, MODEL, *load)
    used_s = _cpu_s(server) - before_s
    _note(found, server, what, [chunk for answer in answers for chunk in answer.chunks])
    found[f"{what}, CPU time"][server.name].append(1e3 * used_s / (load.together * load.chunks))


async def _requests(found: Found, server: Server, requests: int) -> None:
    before_s = _cpu_s(server)
    answers = await one_after_another(server.port, MODEL, requests)
    used_s = _cpu_s(server) - before_s
    _note(found, server, "the first chunk of a request", [answer.first for answer in answers])
    found["a request of one chunk, CPU time"][server.name].append(1e3 * used_s / requests)


def _note(found: Found, server: Server, what: str, values: list[float]) -> None:
    for part in PERCENTILES:
        found[f"{what}, p{part}"][server.name].append(percentile(values, part))


def _cpu_s(server: Server) -> float:
    if server.process is None:
        return 0.0
    times = server.process.cpu_times()
    return float(times.user + times.system)


def _text(sizes: Sizes, found: Found) -> str:
    names = [name for name in (OURS, LITELLM) if all(name in values for values in found.values())]
    rows = [_row(what, values, names) for what, values in found.items()]
    ratio = [f"{LITELLM} / {OURS}"] if LITELLM in names else []
    loads = " and ".join(
        f"{load.together} streams of {load.chunks} chunks, one each {load.every_ms} ms" for load in sizes.loads
    )
    how = f"Median and range of {sizes.rounds} rounds, the servers in turn: {loads.replace('1 streams', '1 stream')}; "
    how += f"{sizes.requests} requests of one chunk."
    return f"{how}\n\n{table(['ms', DIRECT, *(f'{name} adds' for name in names), *ratio], rows)}"


def _row(what: str, values: dict[str, list[float]], names: Sequence[str]) -> list[str]:
    direct = values[DIRECT]
    added = {name: [value - base for value, base in zip(values[name], direct, strict=True)] for name in names}
    ratio = []
    if LITELLM in names:
        ours, theirs = (statistics.median(added[name]) for name in (OURS, LITELLM))
        ratio = [f"{theirs / ours:.1f}" if ours > 0 else "-"]
    base = "" if what.endswith("CPU time") else spread(direct, 3)
    return [what, base, *(spread(added[name], 3) for name in names), *ratio]


def _bars(found: Found) -> dict[str, dict[str, float]]:
    return {
        what: {name: statistics.median(each) for name, each in values.items() if name != DIRECT or "CPU" not in what}
        for what, values in found.items()
        if what.endswith(("p50", "CPU time"))
    }
