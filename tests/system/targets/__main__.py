"""A long run of the chaos tests, with the figures of docs/targets.md.

python -m tests.system.targets                    every fault, 1000 requests each, 32 at once
python -m tests.system.targets killed hangs       these faults
python -m tests.system.targets --hedge hangs      with `hedge = true`
python -m tests.system.targets --tail             what `hedge` gains and costs
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from tests.system.targets.bad_servers import BAD, BAD_LATER
from tests.system.targets.long_run import row, with_bad_server, with_processes
from tests.system.targets.tail import CASES, TAIL_HEAD, first_contents, tail_row

PROCESSES = ("killed", "frozen")
HEAD = (
    "| fault | requests | complete | error after content | failed before content | without ending | tried again "
    "| first content ms, median | 99 % | longest |\n|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", default=[*PROCESSES, *BAD, *BAD_LATER, "slow"])
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--hedge", action="store_true")
    parser.add_argument("--tail", action="store_true")
    options = parser.parse_args()
    if options.tail:
        tails(options.requests, options.at_once)
        return
    print(HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for fault in options.faults:
            run = with_processes if fault in PROCESSES else with_bad_server
            outcomes = run(Path(folder), fault, options.requests, options.at_once, hedge=options.hedge)
            print(row(fault, outcomes), flush=True)


def tails(requests: int, at_once: int) -> None:
    print(TAIL_HEAD)
    with tempfile.TemporaryDirectory() as folder:
        for case, servers in CASES.items():
            for hedge in (False, True):
                found = asyncio.run(first_contents(Path(folder), servers, requests, at_once, hedge=hedge))
                print(tail_row(case, hedge, *found), flush=True)


if __name__ == "__main__":
    main()
