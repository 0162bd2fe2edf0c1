"""What hedging gains and costs: the time to first content of two servers with a slow tail, with and without `hedge`.

The servers are sockets in this process, whose first content takes as long as a function of the number of their request.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

from tests.support.hostile import HEAD, chunk, read_request, text_of
from tests.system.targets.backends import Backend, running
from tests.system.targets.long_run import front_table
from tests.system.targets.traffic import Traffic

USUAL_S, TAIL_S, SLOW_S = 0.02, 1.0, 0.2
TAIL_EVERY = 25  # requests of a server: 4 % of them are in the tail
SLOW_FROM = 150  # the number of the request from which a cluster is slow
_MODELS = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n{"data": []}'

FirstS = Callable[[int], float]


def usual(_: int) -> float:
    return USUAL_S


def with_tail(number: int) -> float:
    return TAIL_S if number % TAIL_EVERY == TAIL_EVERY - 1 else USUAL_S


def becomes_slow(number: int) -> float:
    return USUAL_S if number < SLOW_FROM else SLOW_S


#: By the text of the row: the two servers.
CASES: dict[str, tuple[FirstS, FirstS]] = {
    "one server with a tail": (with_tail, usual),
    "both with a tail": (with_tail, with_tail),
    "both ten times slower from the middle on": (becomes_slow, becomes_slow),
}


class TailServer:
    """Counts the chats that it gets."""

    def __init__(self, first_s: FirstS) -> None:
        self.chats = 0
        self._first_s = first_s

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(await read_request(reader), writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        if request.startswith(b"GET"):
            writer.write(_MODELS)
            return
        number, self.chats = self.chats, self.chats + 1
        writer.write(HEAD)
        await asyncio.sleep(self._first_s(number))
        for event in (chunk(content="one "), chunk(content="two"), chunk("stop"), "[DONE]"):
            writer.write(b"data: %s\n\n" % text_of(event).encode())
            await writer.drain()


async def first_contents(
    folder: Path, servers: tuple[FirstS, FirstS], requests: int, at_once: int, *, hedge: bool
) -> tuple[list[float], int]:
    """The times to first content in seconds, sorted, and the number of chats that the servers got."""
    async with AsyncExitStack() as stack:
        tails = [TailServer(first_s) for first_s in servers]
        urls = []
        for tail in tails:
            listener = await asyncio.start_server(tail.serve, "127.0.0.1", 0)
            stack.callback(listener.close)
            urls.append(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        front = Backend(folder / f"tail{next(_numbers)}", front_table(*urls, hedge=hedge))
        with running(front):
            outcomes = await Traffic(front.url, "m").run(requests, at_once)
    assert all(outcome.is_complete for outcome in outcomes)
    return sorted(outcome.first_s or 0.0 for outcome in outcomes), sum(tail.chats for tail in tails)


_numbers = count()


def tail_row(case: str, hedge: bool, times: Sequence[float], chats: int) -> str:
    shown = [f"{1000 * times[min(len(times) - 1, int(share * len(times)))]:.0f}" for share in (0.95, 0.99, 1.0)]
    median = f"{1000 * statistics.median(times):.0f}"
    twice = f"{100 * (chats - len(times)) / len(times):.1f} %"
    return "| " + " | ".join([case, "on" if hedge else "off", median, *shown, twice]) + " |"


TAIL_HEAD = """\
| servers | `hedge` | first content ms, median | 95 % | 99 % | longest | sent twice |
|---|---|---|---|---|---|---|"""
