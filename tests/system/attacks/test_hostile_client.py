"""Each attack of scripts/soak_hostile.py once. `scripts/soak.py --hostile` runs them for minutes and measures."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import httpx

from tests.support.paths import ROOT
from tests.support.processes import PATIENCE_S, serving

sys.path.insert(0, str(ROOT / "scripts"))
from soak_hostile import Hostile

BLOCKED = " blocked the event loop"
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


def test_other_client_is_answered_after_each_attack(long_tiny: Path, tmp_path: Path) -> None:
    """A callback that blocks the event loop does so each time. One that a busy machine delays does not."""
    if blocking := _blocking_callbacks(long_tiny, tmp_path):
        assert blocking & _blocking_callbacks(long_tiny, tmp_path) == set()


def _blocking_callbacks(model: Path, folder: Path) -> set[str]:
    """Run all attacks against a new gateway. Returns the callbacks that blocked its event loop."""
    config = folder / "config.toml"
    # The breaker judges the speed of the device; a busy machine is slow. This test is about everything else.
    breaker = "[server]\nport = 0\n[breaker]\nlatency_ms = 600000\n"
    config.write_text(f"{breaker}[models.tiny]\npath = '{model}'\nthreads = 1\n", encoding="utf-8")
    with (folder / "log.txt").open("w+", encoding="utf-8") as log:
        stderr = log.fileno()
        with serving("--config", config, cwd=folder, stderr=stderr) as serve:
            found = re.search(r"(http://\S+:\d+)/v1", serve.read_greeting())
            assert found
            asyncio.run(_attack(found[1]))
            code, _ = serve.stop(signal.SIGTERM)
        log.seek(0)
        lines = [line for line in log if re.search(r" ERROR |Traceback", line)]
    assert code == 0
    assert [line for line in lines if BLOCKED not in line] == []
    return {line.split(" ERROR ")[1].split(BLOCKED)[0].strip() for line in lines}


async def _attack(url: str) -> None:
    hostile = Hostile(url, "tiny", linger_s=0.5, attack_s=2.0)
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as other, hostile.http:
        for attack in hostile.attacks:
            running = asyncio.ensure_future(hostile.run(attack))
            for _ in range(3):
                reply = await other.post("/v1/chat/completions", json=QUESTION)
                assert reply.status_code == 200, f"{attack.__name__}: {reply.text}"
            await running
        metrics = (await other.get("/metrics")).text
    print(sorted(hostile.statuses.items()))
    assert re.findall(r"^gateway_worker_restarts_total\{.*\} (\S+)$", metrics, re.MULTILINE) == ["0.0"]
    assert not any(re.search(r": 5(?!03|04)", status) for status in hostile.statuses)
