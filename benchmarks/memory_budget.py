"""Three models of 2 GB under a budget of 3 GB: 500 requests at random from 8 clients, and the memory over time.

    python benchmarks/memory_budget.py [--quick] [--write docs/benchmarks.md]

Each model is a tiny bundle with a sparse file of weights, in a real worker process that allocates and writes its 2 GB.
The memory is the sum of the PSS of the processes below the gateway: a page that several processes share counts once.
Every request must have one answer, the one that its model gave alone. Then each model is unloaded, and the time until
its memory is free is measured.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import psutil
from processes import free_port, running
from report import ROOT, line_plot, parser, publish, spread, table

from gateway.activity import Activity
from gateway.worker.entry import local_worker
from gateway.worker.frames import WorkerSpec

PADDING = "PADDING_MB"  # environment variable
WORKER_MB, OTHER_MB = 170, 240  # of a process without padding; of the estimate without weights
REPLY_S = 3600


class Size(NamedTuple):
    """Megabytes, and counts."""

    model: int
    budget: int
    models: int
    requests: int
    clients: int


FULL, QUICK = Size(2000, 3000, 3, 500, 8), Size(260, 390, 2, 4, 2)


def padded_worker(connection: Connection, spec: WorkerSpec, activity: Activity) -> None:
    """The worker of a bundle, in a process that has the memory of a large model."""
    padding = bytearray(int(os.environ[PADDING]) * 1_000_000)
    padding[::4096] = b"\1" * len(range(0, len(padding), 4096))
    local_worker(connection, spec, activity)


def serve(config: str) -> None:
    """The gateway, with that worker for each model."""
    from gateway import app
    from gateway.config.file import load_config
    from gateway.config.tables import LocalModel, ModelConfig
    from gateway.engines.local.engine import LocalEngine
    from gateway.server.server import bind
    from gateway.server.server import serve as serve_app

    made = load_config(Path(config))

    def make_engine(name: str, model: ModelConfig, models_dir: Path, budget_bytes: float = 0.0) -> LocalEngine:
        assert isinstance(model, LocalModel)
        return LocalEngine(name, model, models_dir, entry=padded_worker)

    app.make_engine = make_engine  # type: ignore[attr-defined]
    serve_app(app.create_app(made), made.server, listener=bind(made.server))


@contextmanager
def served(size: Size, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Start the gateway. Yields its port and its process."""
    from tests.support.tiny import build_tiny

    port, tables = free_port(), []
    for index in range(size.models):
        bundle = build_tiny(folder / f"m{index}")
        with (bundle / "padding.bin").open("wb") as weights:
            weights.truncate(int((size.model - OTHER_MB) * 1e6 / 1.3))
        path = json.dumps(bundle.as_posix())
        tables.append(f'[models.m{index}]\npath = {path}\nload = "demand"\nthreads = 1\nqueue = 500\n')
    config = folder / "config.toml"
    head = f"[server]\nport = {port}\n[memory]\nbudget_mb = {size.budget}\n[breaker]\nenabled = false\n"
    config.write_text(head + "".join(tables), encoding="utf-8")
    environment = os.environ | {PADDING: str(size.model - WORKER_MB), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, "--serve", str(config)]
    with running(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment) as server:
        server.wait_until_ready(port, "/readyz")
        yield port, psutil.Process(server.process.pid)


class Memory:
    """Reads the memory of all processes below the gateway, again and again, in a thread.

    Args:
        seconds: between two readings.
    """

    def __init__(self, gateway: psutil.Process, seconds: float = 0.1) -> None:
        self.points: list[tuple[float, float]] = []  # seconds since the begin, megabytes
        self._gateway, self._seconds = gateway, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Memory:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self.points.append((time.monotonic() - self._began, below(self._gateway)))


def below(gateway: psutil.Process) -> float:
    """Megabytes of the processes below the gateway now."""
    total = 0.0
    for process in gateway.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            if any("resource_tracker" in part for part in process.cmdline()):
                continue  # of Python, one for all workers
            info = process.memory_full_info()
            total += getattr(info, "pss", info.uss) / 1e6
    return total


def post(port: int, path: str, body: object) -> dict[str, object]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=REPLY_S)) as connection:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        reply: dict[str, object] = json.loads(response.read())
        assert response.status == 200, reply
        return reply


def answer(port: int, model: int, prompt: Sequence[int]) -> object:
    body = {"model": f"m{model}", "prompt": list(prompt), "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    choices = post(port, "/v1/completions", body)["choices"]
    assert isinstance(choices, list)
    return choices[0]["text"]


def storm(port: int, size: Size) -> list[float]:
    """Send the requests and check each answer. Returns the seconds that each took."""
    chance = random.Random(1)
    prompts = [[chance.randrange(300) for _ in range(6)] for _ in range(4)]
    expected = {(m, p): answer(port, m, prompts[p]) for m in range(size.models) for p in range(len(prompts))}
    wanted = [(chance.randrange(size.models), chance.randrange(len(prompts))) for _ in range(size.requests)]

    def one(request: tuple[int, int]) -> float:
        began = time.perf_counter()
        model, prompt = request
        assert answer(port, model, prompts[prompt]) == expected[request], "another answer than alone"
        return time.perf_counter() - began

    with ThreadPoolExecutor(size.clients) as clients:
        return list(clients.map(one, wanted))


def unloads(port: int, gateway: psutil.Process, size: Size) -> Iterator[tuple[float, float]]:
    """For each model: milliseconds of its unload, and the share of its memory that is free then, in percent."""
    for model in range(size.models):
        answer(port, model, [1, 2, 3])
        before, began = below(gateway), time.perf_counter()
        post(port, f"/v1/models/m{model}/unload", {})
        yield 1e3 * (time.perf_counter() - began), 100 * (1 - below(gateway) / before)


def main() -> None:
    if "--serve" in sys.argv:
        serve(sys.argv[-1])
        return
    arguments = parser(__doc__ or "").parse_args()
    size = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as folder, served(size, Path(folder)) as (port, gateway):
        with Memory(gateway) as memory:
            began = time.monotonic()
            took = storm(port, size)
            total_s = time.monotonic() - began
        freed = list(unloads(port, gateway, size))
    peak = max(megabytes for _, megabytes in memory.points)
    rows = [
        ("requests, each with the right answer", f"{len(took)} of {size.requests}"),
        ("seconds for all of them", f"{total_s:.0f}"),
        ("seconds for one request, with its waits and loads", spread(took)),
        ("most memory of all models, MB", f"{peak:.0f}"),
        ("of the budget", f"{100 * peak / size.budget:.1f} %"),
        ("milliseconds until an unload has ended", spread([ms for ms, _ in freed], 0)),
        ("memory that is free then", f"{spread([share for _, share in freed])} %"),
    ]
    head = (
        f"{size.models} models of {size.model} MB, a budget of {size.budget} MB, {size.requests} requests at random "
        f"from {size.clients} clients."
    )
    plot = line_plot("MB of all models", memory.points, {"budget": size.budget})
    publish("memory_budget", f"{head}\n\n{table(('', 'measured'), rows)}", plot, arguments.write)


if __name__ == "__main__":
    main()
