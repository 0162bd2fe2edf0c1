"""A long run of the stress test with random faults, with figures.

python -m tests.system.storm --events 10000             workers are tasks on the event loop, in virtual time
python -m tests.system.storm --events 2000 --processes  workers are processes, and are killed with SIGKILL
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.support.tiny import build_tiny
from tests.system.storm.run import run_storm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000, help="failed calls and ended workers")
    parser.add_argument("--processes", action="store_true", help="run workers as processes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storm = run_storm(build_tiny(Path(folder)), options.events, processes=options.processes, seed=options.seed)
    requests, restarts = storm.counts.total(), storm.restarts
    print(f"{storm.events} events, {restarts} of them ends of workers; {requests} requests, each with one ending:")
    for ending, count in storm.counts.most_common():
        print(f"  {count:6} {ending}")
    print("nothing is left over; memory at each tenth, MiB: " + " ".join(f"{mb:.1f}" for mb in storm.memory_mb))


if __name__ == "__main__":
    main()
