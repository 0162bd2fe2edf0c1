"""Many devices behind a gateway: which target a request goes to, and where the router's constants come from.

    python benchmarks/scale.py [--quick] [--only SECTION] [--write docs/scale.md]

This is a simulation (fleet/), except for the section `scale_cost`, which measures the router's functions. Every
random number comes from a seed: a second run gives the same figures. All sections take six minutes on one core.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any, get_args

from fleet import conversations
from fleet.plan import Figures, Plan, Policy
from fleet.simulation import Fleet
from report import chart, parser, publish, spread, table

from gateway.engines.upstream import hedge, policy
from gateway.engines.upstream.policy import MOST_MISSED, Candidate, choose
from gateway.engines.upstream.prefixes import INDEX_BLOCKS, PrefixIndex, blocks_of
from gateway.generation import Chat, Message

POLICIES: tuple[Policy, ...] = get_args(Policy)
LOADS = (0.3, 0.45, 0.6, 0.75, 0.9)
HUNDRED = Plan(devices=100, seconds=1500, warm_s=300)
FAULTY = replace(HUNDRED, slow=0.05, stalling=0.05, crashing=0.05)
LARGE_INDEX = 164 * 10_000  # the blocks that 10,000 devices can keep
HEAD = ["TTFT p50, s", "p99, s", "cached", "used", "used by the busiest"]
Published = tuple[str, Mapping[str, Mapping[str, float]] | str]


def figures(plan: Plan) -> Figures:
    """Run it, or in a quick run a small form of it."""
    if QUICK:
        plan = replace(plan, devices=min(plan.devices, 6), group=plan.group and 3, seconds=80, warm_s=20)
    return Fleet(plan).run().figures


def cells(found: Figures) -> list[str]:
    return [
        f"{found.p50_s:.2f}",
        f"{found.p99_s:.2f}",
        f"{found.hits:.0%}",
        f"{found.used:.0%}",
        f"{found.most_used:.0%}",
    ]


def devices() -> Published:
    """Up to 1000 devices behind one gateway; 10,000 behind 100 gateways of 100, which are targets of another one."""
    plans = {
        "10": Plan(devices=10, seconds=8000, warm_s=300),
        "100": HUNDRED,
        "1,000": Plan(devices=1000, seconds=400, warm_s=200),
        "10,000": Plan(devices=10_000, seconds=180, warm_s=100, group=100),
    }
    found = {(count, name): figures(replace(plans[count], policy=name)) for count in plans for name in POLICIES}
    large = figures(replace(plans["10,000"], index=LARGE_INDEX))
    rows = [[count, name, f"{each.requests:,}", *cells(each)] for (count, name), each in found.items()]

    def lines(value: Callable[[Figures], float]) -> dict[str, list[float]]:
        return {name: [value(found[count, name]) for count in plans] for name in POLICIES}

    rows.append(["10,000", f"affine, first index of {LARGE_INDEX:,} blocks", f"{large.requests:,}", *cells(large)])
    text = table(["devices", "policy", "requests", *HEAD], rows)
    panels = {
        "TTFT p50, s, by number of devices": lines(lambda each: each.p50_s),
        "TTFT p99, s": lines(lambda each: each.p99_s),
    }
    return text, chart([*plans], panels)


def load() -> Published:
    """100 devices, more and more requests."""
    found = {(share, name): figures(replace(HUNDRED, load=share, policy=name)) for share in LOADS for name in POLICIES}
    rows = [[f"{share:.0%}", name, *cells(each)] for (share, name), each in found.items()]

    def lines(value: Callable[[Figures], float]) -> dict[str, list[float]]:
        return {name: [value(found[share, name]) for share in LOADS] for name in POLICIES}

    panels = {"TTFT p50, s, by load": lines(lambda each: each.p50_s), "TTFT p99, s": lines(lambda each: each.p99_s)}
    return table(["load", "policy", *HEAD], rows), chart([f"{share:.0%}" for share in LOADS], panels)


def faults() -> Published:
    """100 devices, of which 5 % are slow, 5 % stop for 20 s and 5 % crash, each of these two every two minutes."""
    found = {name: figures(replace(FAULTY, policy=name)) for name in POLICIES}
    rows = [[name, *cells(each), f"{each.lost / (each.requests + each.lost):.2%}"] for name, each in found.items()]
    lines: dict[str, list[float]] = {name: [each.p50_s, each.p99_s, each.p999_s] for name, each in found.items()}
    plot = chart(["p50", "p99", "p99.9"], {"TTFT with faults, s": lines})
    return table(["policy", *HEAD, "lost after the first token"], rows), plot


def spill() -> Published:
    """How much more load the target with the cache may have, and after how many missing blocks."""
    settings = [(0.0, 8), (0.1, 8), (0.15, 8), (0.2, 8), (0.25, 8), (0.4, 8), (0.2, 2), (0.2, 4), (0.2, 16), (0.2, 32)]
    cases = {
        "NPUs, 30 %": replace(HUNDRED, load=0.3),
        "NPUs, 60 %": HUNDRED,
        "NPUs, 90 %": replace(HUNDRED, load=0.9),
        "servers, 60 %": replace(HUNDRED, devices=8, batch=8),
        "servers, 90 %": replace(HUNDRED, devices=8, batch=8, load=0.9),
    }
    found = {}
    for cost, most in settings:
        with changed(policy, MISS_COST=cost, MOST_MISSED=most):
            found[cost, most] = {case: figures(plan) for case, plan in cases.items()}
    rows = [
        [f"{cost:g}", f"{most}", f"{1 + cost * most:.1f}"]
        + [f"{each.mean_s:.2f}, {each.p99_s:.2f}" for each in found[cost, most].values()]
        for cost, most in settings
    ]
    names = [f"{case}: mean, p99" for case in cases]
    drawn = [setting for setting in settings if setting[1] == MOST_MISSED]
    panels = {
        "mean TTFT, s, by ratio of loads": {case: [found[at][case].mean_s for at in drawn] for case in cases},
        "TTFT p99, s": {case: [found[at][case].p99_s for at in drawn] for case in cases},
    }
    plot = chart([f"{1 + cost * most:.1f}" for cost, most in drawn], panels)
    return table(["MISS_COST", "MOST_MISSED", "ratio of loads", *names], rows), plot


def blocks() -> Published:
    """Tokens in a block."""
    rows: list[list[str]] = []
    points: list[Figures] = []
    for tokens in (32, 128, 512, 1024):
        with changed(conversations, BLOCK_TOKENS=tokens):
            each = figures(HUNDRED)
        rows.append([f"{tokens}", *cells(each)[:4]])
        points.append(each)
    return table(["tokens in a block", *HEAD[:4]], rows), _times([row[0] for row in rows], "tokens in a block", points)


def index() -> Published:
    """The number of blocks that the index keeps, for each device."""
    rows: list[list[str]] = []
    points: list[Figures] = []
    for size in (0, 16, 64, 128, 256, INDEX_BLOCKS // 100):
        each = figures(replace(HUNDRED, index=100 * size))
        rows.append([f"{size}", *cells(each)[:4]])
        points.append(each)
    return table(["blocks for each device", *HEAD[:4]], rows), _times(
        [row[0] for row in rows], "blocks for each device", points
    )


def hedging() -> Published:
    """100 devices with the same faults: when a late request gets a second device, and how many may."""
    rows: list[list[str]] = []
    points: list[Figures] = []
    for percentile, share in ((None, 0.0), (0.99, 0.1), (0.95, 0.02), (0.95, 0.1), (0.9, 0.1), (0.9, 0.2), (0.5, 1.0)):
        with changed(hedge, PERCENTILE=percentile, SHARE=share):
            each = figures(replace(FAULTY, hedge=percentile is not None))
        name = f"{percentile:.0%}, {share:.0%}" if percentile else "never"
        values = [
            f"{each.p50_s:.2f}",
            f"{each.p99_s:.2f}",
            f"{each.p999_s:.1f}",
            f"{each.hedged:.1%}",
            f"{each.used:.1%}",
        ]
        rows.append([name, *values])
        points.append(each)
    head = ["percentile, share that may", "TTFT p50, s", "p99, s", "p99.9, s", "with a second device", "used"]
    lines = {"p99": [each.p99_s for each in points], "p99.9": [each.p999_s for each in points]}
    return table(head, rows), chart([row[0] for row in rows], {"TTFT with faults, s": lines})


def gateways() -> Published:
    """Several gateways with the same 100 devices. None knows the requests of the others."""
    names: tuple[Policy, ...] = ("random", "least-loaded", "affine")
    rows: list[list[str]] = []
    lines: dict[str, list[float]] = {name: [] for name in names}
    for count in (1, 2, 4, 16):
        for name in names:
            each = figures(replace(HUNDRED, gateways=count, policy=name))
            rows.append([f"{count}", name, *cells(each)])
            lines[name].append(each.p99_s)
    return table(["gateways", "policy", *HEAD], rows), chart(
        ["1", "2", "4", "16"], {"TTFT p99, s, by number of gateways": lines}
    )


def losses() -> Published:
    """Work in which affinity has little to gain."""
    cases = {
        "one turn, 30 % load": replace(HUNDRED, last_turn=1.0, load=0.3),
        "one turn, 90 % load": replace(HUNDRED, last_turn=1.0, load=0.9),
        "10 minutes between turns, 60 % load": replace(HUNDRED, turn_s=600, devices=24, seconds=5000, warm_s=3000),
        "10 minutes between turns, 90 % load": replace(
            HUNDRED, turn_s=600, devices=24, seconds=5000, warm_s=3000, load=0.9
        ),
    }
    rows: list[list[str]] = []
    lines: dict[str, list[float]] = {}
    for case, plan in cases.items():
        ways = {
            "random": replace(plan, policy="random"),
            "least-loaded": replace(plan, policy="least-loaded"),
            "affine": plan,
            "affine, small index": replace(plan, index=164 * plan.devices),
        }
        for name, way in ways.items():
            each = figures(way)
            rows.append([case, name, *cells(each)])
            lines.setdefault(name, []).append(each.p99_s)
    return table(["work", "policy", *HEAD], rows), chart(
        ["1 turn, 30 %", "1 turn, 90 %", "10 min, 60 %", "10 min, 90 %"], {"TTFT p99, s": lines}
    )


def cost() -> Published:
    """Microseconds of the router's functions, for chats of 1, 10 and 100 kB and 8 targets. Measured, not simulated."""
    rows: list[list[str]] = []
    bars: dict[str, Any] = {}
    for size in (1_000, 10_000, 100_000, 10_000_000):
        draw = random.Random(size)
        parts = ["".join(draw.choices("abcdefgh ijkl", k=2000)) for _ in range(max(1, min(size, 200_000) // 2000))]
        chat = Chat(
            messages=tuple(Message(role="user", content=part[:size]) for part in parts * (size // 200_000 or 1))
        )
        prompt, known = blocks_of(chat), PrefixIndex(8)
        for target in range(8):
            known.note(target, prompt[: len(prompt) * target // 8])
        loads, matches = [Candidate(target) for target in range(8)], known.matches(prompt)
        times = [
            microseconds(lambda chat=chat: blocks_of(chat)),  # type: ignore[misc]
            microseconds(lambda known=known, prompt=prompt: known.matches(prompt)),  # type: ignore[misc]
            microseconds(lambda known=known, prompt=prompt: known.note(3, prompt)),  # type: ignore[misc]
            microseconds(lambda loads=loads, matches=matches: choose(loads, matches, 5)),  # type: ignore[misc]
        ]
        rows.append([f"{size // 1000:,} kB", f"{len(prompt)}", *(spread(each, 1) for each in times)])
        bars[f"{size // 1000:,} kB, µs"] = {"all four": sum(map(statistics.median, times))}
    return table(["chat", "blocks", "blocks_of, µs", "matches, µs", "note, µs", "choose, µs"], rows), bars


def _times(labels: Sequence[str], what: str, points: Sequence[Figures]) -> str:
    lines = {"p50": [each.p50_s for each in points], "p99": [each.p99_s for each in points]}
    return chart(labels, {f"TTFT, s, by {what}": lines})


def microseconds(call: Callable[[], object]) -> list[float]:
    """Of processor time, in nine rounds."""
    rounds = []
    for _ in range(9):
        began, count = time.process_time(), 0
        while time.process_time() - began < (0.002 if QUICK else 0.03):
            call()
            count += 1
        rounds.append(1e6 * (time.process_time() - began) / count)
    return rounds


@contextmanager
def changed(module: ModuleType, **values: Any) -> Iterator[None]:
    """Other values of a module's constants."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


SECTIONS: Mapping[str, Callable[[], Published]] = {
    f"scale_{make.__name__}": make
    for make in (devices, load, faults, hedging, spill, blocks, index, gateways, losses, cost)
}


def main(arguments: Sequence[str] | None = None) -> None:
    global QUICK
    options = parser(__doc__ or "")
    options.add_argument("--only", choices=SECTIONS, action="append", help="the sections to make; by default all")
    found = options.parse_args(arguments)
    QUICK = found.quick
    for name in found.only or SECTIONS:
        began = time.process_time()
        publish(name, *SECTIONS[name](), found.write)
        print(f"{name}: {time.process_time() - began:.0f} s of processor time", file=sys.stderr)


QUICK = False

if __name__ == "__main__":
    main()
