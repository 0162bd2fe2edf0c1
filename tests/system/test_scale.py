"""The simulation of docs/scale.md: the worker's cache, the order of the policies, and the constants of the code."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gateway.engines.upstream import hedge, policy, prefixes
from gateway.worker.slots import SlotPool
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
TOKEN_BYTES = 57_344


@pytest.fixture(scope="module")
def part() -> Iterator[Callable[[str], Any]]:
    """Imports a module of the simulation as the script does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield lambda name: import_module(f"fleet.{name}")


@pytest.fixture(scope="module")
def figures(part: Callable[[str], Any]) -> Callable[..., Any]:
    def simulated(name: str, **changes: Any) -> Any:
        plan = part("plan").Plan(policy=name, **{"devices": 12, "seconds": 300, "warm_s": 60, **changes})
        return part("simulation").Fleet(plan).run().figures

    return simulated


class RowCount:
    """A KVCache that has only a length."""

    def __init__(self, length: int = 0) -> None:
        self.length = length

    @property
    def nbytes(self) -> int:
        return TOKEN_BYTES * self.length

    def snapshot(self) -> RowCount:
        return RowCount(self.length)

    def truncate(self, length: int) -> None:
        self.length = length

    def copy_from(self, other: RowCount, length: int) -> None:
        self.length = length


def ids(conversation: Any, tokens: int) -> list[int]:
    """The first tokens of a conversation. Its system prompt has negative ones."""
    shared, own = min(tokens, conversation.shared), 10_000 * conversation.number
    return [*range(-1, -1 - shared, -1), *range(own + shared, own + tokens)]


def test_cache_of_the_simulation_is_that_of_the_worker(part: Callable[[str], Any]) -> None:
    """The same requests, with up to four running, reuse the same number of tokens."""
    draw, cache, plan = random.Random(1), part("cache").Cache(), part("plan").Plan()
    slots, snapshot_bytes = part("cache").SLOTS, TOKEN_BYTES * part("cache").SNAPSHOT_TOKENS
    pool = SlotPool([RowCount() for _ in range(slots)], snapshot_bytes)  # type: ignore[misc]
    conversations = [part("conversations").Conversation(number, plan) for number in range(1, 15)]
    for each in conversations:
        each.app = each.number % 2
        each.shared = each.length = 200 * each.app
    running: list[tuple[Any, Any, Any]] = []
    reused = 0
    for _ in range(200):
        if len(running) == slots or (running and draw.random() < 0.3):
            each, rows, slot = running.pop(draw.randrange(len(running)))
            slot.cache.length, slot.ids = each.length, ids(each, each.length)
            pool.release(slot)
            cache.release(rows, each.length)
            continue
        idle = [each for each in conversations if each not in [busy for busy, _, _ in running]]
        each = draw.choice(idle)
        prompt = min(each.length + draw.randrange(20, 400), 1800)
        slot = pool.take(ids(each, prompt), "")
        rows, cached = cache.take(each, prompt)
        assert cached == slot.cache.length
        reused, slot.cache.length = reused + cached, prompt
        each.length = prompt + draw.randrange(1, 100)
        running.append((each, rows, slot))
    assert reused > 10_000


def test_policies_are_in_the_order_of_the_page(figures: Callable[..., Any]) -> None:
    found = {name: figures(name) for name in ("random", "two choices", "least-loaded", "affine")}
    means = [each.mean_s for each in found.values()]
    assert means == sorted(means, reverse=True) and means[0] > 2 * means[3]
    assert found["affine"].hits > 2 * found["least-loaded"].hits
    assert found["affine"].used < found["random"].used, "what is cached is not computed again"


def test_same_seed_gives_the_same_figures_and_another_one_does_not(figures: Callable[..., Any]) -> None:
    short = {"devices": 4, "seconds": 120, "warm_s": 0}
    assert figures("affine", **short) == figures("affine", **short) != figures("affine", **short, seed=2)


def test_load_that_a_router_sees_is_what_its_devices_have(part: Callable[[str], Any]) -> None:
    """Also after stalls, crashes, and requests that a second device won."""
    faults = {"slow": 0.2, "stalling": 0.2, "crashing": 0.2, "hedge": True, "group": 4}
    fleet = part("simulation").Fleet(part("plan").Plan(devices=8, load=0.9, seconds=400, warm_s=0, **faults)).run()
    assert fleet.hedged and fleet.lost
    [top] = fleet.routers
    for group, router in enumerate(fleet.leaves()):
        loads = [candidate.load for candidate in router.candidates]
        assert loads == [len(device.live) for device in router.targets]
        assert top.candidates[group].load == sum(loads)


def test_constants_of_the_code_are_those_of_the_page() -> None:
    listed = dict(re.findall(r"^\| `([A-Z_]+)` \| ([\d.,]+) \|", PAGE, re.MULTILINE))
    found = {
        name: getattr(module, name)
        for module, names in (
            (policy, ("MISS_COST", "MOST_MISSED")),
            (prefixes, ("BLOCK_CHARACTERS", "BLOCK_TOKENS", "MOST_BLOCKS", "INDEX_BLOCKS")),
            (hedge, ("PERCENTILE", "SHARE")),
        )
        for name in names
    }
    assert {name: float(value.replace(",", "")) for name, value in listed.items()} == found


def test_script_writes_its_sections(tmp_path: Path) -> None:
    page = tmp_path / "scale.md"
    page.write_text(PAGE, encoding="utf-8")
    options = ["--quick", "--only", "scale_faults", "--only", "scale_cost", "--write", str(page)]
    subprocess.run([sys.executable, "benchmarks/scale.py", *options], cwd=ROOT, check=True, timeout=600)
    section = page.read_text(encoding="utf-8").split("<!-- scale_faults -->")[1].split("<!-- /scale_faults -->")[0]
    assert "| affine |" in section and "![scale_faults](benchmarks-scale_faults.svg)" in section
    assert (tmp_path / "benchmarks-scale_cost.svg").read_text(encoding="utf-8").endswith("</svg>\n")
