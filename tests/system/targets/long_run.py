"""Long runs: gateway processes behind a gateway process, one of them killed or frozen, or next to a bad server."""

from __future__ import annotations

import asyncio
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from tests.support.hostile import Behave, hostile
from tests.system.targets.backends import Backend, running, scripted_table
from tests.system.targets.bad_servers import BAD, BAD_LATER, misbehave, slow
from tests.system.targets.traffic import Outcome, Traffic, failed_early, without_ending

WATCHDOG_S = 5.0
WORDS, TOKEN_S, FIRST_S = 10, 0.001, 0.01
PAUSE_S = 1.0  # between two faults of a server

_numbers = count()


def front_table(*urls: str, hedge: bool) -> str:
    targets = ", ".join(f'"{url}/v1"' for url in urls)
    return (
        f'[models.m]\nengine = "upstream"\ntargets = [{targets}]\nupstream_model = "m"\n'
        f"watchdog_s = {WATCHDOG_S}\nmax_sequences = 1000\nqueue = 1000\nhedge = {str(hedge).lower()}\n"
    )


def backend(folder: Path) -> Backend:
    return Backend(folder / f"backend{next(_numbers)}", scripted_table("w " * WORDS, token_s=TOKEN_S, ttft_s=FIRST_S))


@contextmanager
def disturbed(step: Callable[[], None]) -> Iterator[None]:
    """Call `step` again and again in a thread, with a pause before each."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(PAUSE_S):
            step()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def with_processes(folder: Path, fault: str, requests: int, at_once: int, *, hedge: bool) -> list[Outcome]:
    """Two real gateways, of which one is killed and started again, or frozen and released, all the time."""
    first, second = backend(folder), backend(folder)
    front = Backend(folder / f"front{next(_numbers)}", front_table(first.url, second.url, hedge=hedge))

    def kill() -> None:
        first.kill()
        first.close()
        time.sleep(PAUSE_S)
        first.start()
        first.wait()

    def freeze() -> None:
        first.signal(signal.SIGSTOP)
        time.sleep(2 * WATCHDOG_S)
        first.signal(signal.SIGCONT)

    with running(first, second, front), disturbed({"killed": kill, "frozen": freeze}[fault]):
        return asyncio.run(Traffic(front.url, "m").run(requests, at_once))


def with_bad_server(folder: Path, fault: str, requests: int, at_once: int, *, hedge: bool) -> list[Outcome]:
    """One real gateway and one bad server."""
    faults: dict[str, bytes | Behave] = {**BAD, **BAD_LATER, "slow": slow}
    with ExitStack() as stack:
        bad, good = stack.enter_context(hostile()), backend(folder)
        misbehave(bad, faults[fault])
        bad_url = f"http://127.0.0.1:{bad.port}"
        front = Backend(folder / f"front{next(_numbers)}", front_table(bad_url, good.url, hedge=hedge))
        stack.enter_context(running(good, front))
        return asyncio.run(Traffic(front.url, "m").run(requests, at_once))


def row(fault: str, outcomes: Sequence[Outcome]) -> str:
    """One row of the table of docs/targets.md."""
    first_ms = sorted(1000 * outcome.first_s for outcome in outcomes if outcome.first_s is not None)
    retried = sum("attempts=1" not in outcome.route for outcome in outcomes)
    values = [
        fault,
        len(outcomes),
        sum(outcome.is_complete for outcome in outcomes),
        sum(bool(outcome.error and outcome.text) for outcome in outcomes),
        len(failed_early(outcomes)),
        len(without_ending(outcomes)),
        retried,
        f"{statistics.median(first_ms):.0f}",
        f"{first_ms[int(0.99 * (len(first_ms) - 1))]:.0f}",
        f"{first_ms[-1]:.0f}",
    ]
    return "| " + " | ".join(map(str, values)) + " |"
