"""What the gateway does in front of other servers: what it adds, what more servers bring, what a flood costs others.

    python benchmarks/proxy.py [--only PART] [--litellm PROGRAM] [--quick] [--write docs/benchmarks.md]

PART is `latency`, `targets` or `flood`. The servers are scripted, and all processes run on this machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from proxying import engines, latency
from report import parser, publish


def proxy_latency(arguments: argparse.Namespace) -> None:
    sizes = latency.QUICK if arguments.quick else latency.FULL
    text, bars = latency.measure(sizes, arguments.litellm)
    publish("proxy-latency", text, bars, arguments.write)


def targets(arguments: argparse.Namespace) -> None:
    text, bars = engines.throughput(engines.QUICK if arguments.quick else engines.FULL)
    publish("proxy-targets", text, bars, arguments.write)


def flood(arguments: argparse.Namespace) -> None:
    text, bars = engines.flood(engines.QUICK if arguments.quick else engines.FULL)
    publish("proxy-flood", text, bars, arguments.write)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {"latency": proxy_latency, "targets": targets, "flood": flood}


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--only", choices=PARTS, metavar="PART", help="run only this part")
    made.add_argument("--litellm", type=Path, metavar="PROGRAM", help="compare with this program of `litellm[proxy]`")
    arguments = made.parse_args()
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            part(arguments)


if __name__ == "__main__":
    main()
