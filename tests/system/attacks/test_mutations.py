"""Mutated requests over every endpoint, through a socket, with the default limits.

A reply is a success or a refusal. It is never a 5xx, except 503 for a busy gateway, and 504 for the time limit that the
test sends: a mutation can ask for 100 answers of 2,000 tokens. The log has no line at ERROR, and no worker restarts.
`scripts/test_slow.py` sends 10,000 requests.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.processes import PATIENCE_S, Serving, serving
from tests.system.attacks.mutations import BODIES, mutations

AT_ONCE = 8
LOG = "log.txt"
HEADERS = {"Content-Type": "application/json", "x-request-timeout-ms": "20000"}
BUSY = ("service_unavailable", "model_busy")  # 503 codes that say: try again, the request is right


def test_valid_bodies_are_accepted(long_tiny: Path, tmp_path: Path) -> None:
    with _gateway(long_tiny, tmp_path) as serve:
        url = _url(serve)
        bodies = [(path, {"model": "tiny"} | body) for path, body in BODIES]
        replies = [httpx.post(url + path, json=body, timeout=PATIENCE_S) for path, body in bodies]
        assert [reply.text for reply in replies if reply.status_code != 200] == []


@pytest.mark.parametrize(
    ("seed", "count"), [(1, 250), pytest.param(2, 10_000, marks=pytest.mark.slow)], ids=["short", "long"]
)
def test_mutated_requests_harm_nothing(seed: int, count: int, long_tiny: Path, tmp_path: Path) -> None:
    with _gateway(long_tiny, tmp_path) as serve:
        url = _url(serve)
        statuses, faults = asyncio.run(_send_all(url, seed, count))
        metrics = httpx.get(f"{url}/metrics", timeout=PATIENCE_S).text
        code, _ = serve.stop(signal.SIGTERM)
    log = (tmp_path / LOG).read_text(encoding="utf-8").splitlines()
    print(sorted(statuses.items()), *faults, *_bad(log), sep="\n")
    assert faults == []
    assert _bad(log) == []
    assert statuses[200] > count / 10
    assert statuses.total() == count
    assert set(re.findall(r"^gateway_worker_restarts_total\{.*\} (\S+)$", metrics, re.MULTILINE)) == {"0.0"}
    assert re.findall(r'^gateway_breaker_changes_total\{.*state="open"\} (\S+)$', metrics, re.MULTILINE) == []
    assert code == 0


def _bad(log: list[str]) -> list[str]:
    return [line for line in log if re.search(r" ERROR |Traceback|blocked the event loop", line)]


@contextmanager
def _gateway(model: Path, folder: Path) -> Iterator[Serving]:
    config = folder / "config.toml"
    # A budget that no machine exceeds: the breaker judges the speed of the device, and this test judges blame.
    breaker = "[server]\nport = 0\n[breaker]\nlatency_ms = 600000\n"
    tiny = f"[models.tiny]\npath = '{model}'\nthreads = 1\ncontext_length = 2048\n"
    vectors = "[models.vectors]\nengine = 'scripted'\nscript = { kind = 'encoder' }\n"
    config.write_text(breaker + tiny + vectors, encoding="utf-8")
    with (folder / LOG).open("w", encoding="utf-8") as log:
        stderr = log.fileno()
        with serving("--config", config, cwd=folder, stderr=stderr) as serve:
            yield serve


def _url(serve: Serving) -> str:
    found = re.search(r"(http://\S+:\d+)/v1", serve.read_greeting())
    assert found
    return found[1]


async def _send_all(url: str, seed: int, count: int) -> tuple[Counter[int], list[str]]:
    statuses: Counter[int] = Counter()
    faults: list[str] = []
    requests = mutations(seed, count, "tiny")

    async def send() -> None:
        for path, content in requests:
            reply = await client.post(path, content=content, headers=HEADERS)
            statuses[reply.status_code] += 1
            if _is_fault(reply):
                faults.append(f"{path} {reply.status_code} {reply.text[:300]} for {content[:2000]!r}")

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(send())
    return statuses, faults


def _is_fault(reply: httpx.Response) -> bool:
    match reply.status_code:
        case 503:
            error = reply.json().get("error")
            return not isinstance(error, dict) or error.get("code") not in BUSY
        case status:
            return status >= 500 and status != 504
