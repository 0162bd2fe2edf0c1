"""The start of the gateway with one model: seconds until it is ready, processor time, and memory at rest.

    python benchmarks/start.py [--rounds 5] [--model FOLDER ...] [--clone FOLDER] [--peers FOLDER --gguf FILE]

Each round starts the gateway of this clone, that of another clone (`--clone`) and llama.cpp's server (`--gguf`) in turn
and ends each one. The page cache has the files, because a start before the first round reads them. The memory is that
of the processes two seconds after they were ready, before the first request. A page that several processes share counts
in part for each (PSS); anonymous memory is what no file has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
from peer.install import find_llama_server
from processes import free_port, running
from random_gguf import random_bundle
from report import ROOT, parser, publish, spread, table
from weights import USUAL, bundle_of

CONFIG = """\
[server]
port = {port}
[models.model]
path = {path}
context_length = {context}
"""
CONTEXT, SEQUENCES = 2048, 4
REST_S = 2.0
ROLES = {"multiprocessing.spawn": "worker", "resource_tracker": "resource tracker", "idle_check": "check of hashes"}


class Server(NamedTuple):
    """How to start a server, and the path that answers 200 when it is ready."""

    command: list[str]
    ready: str
    clone: Path = ROOT


class Start(NamedTuple):
    """One start. By role: (seconds of processor time until ready; PSS and anonymous memory at rest, MB)."""

    ready_s: float
    roles: dict[str, tuple[float, float, float]]

    def total(self, column: int) -> float:
        return sum(figures[column] for figures in self.roles.values())


def gateway(clone: Path, bundle: Path, scratch: Path, port: int) -> Server:
    config, path = scratch / "config.toml", json.dumps(bundle.resolve().as_posix())
    config.write_text(CONFIG.format(port=port, path=path, context=CONTEXT), encoding="utf-8")
    return Server([sys.executable, "-m", "gateway", "serve", "--config", str(config)], "/readyz", clone)


def llama(server: Path, gguf: Path, port: int) -> Server:
    command = [str(server), "--model", str(gguf), "--port", str(port), "--threads", "2", "--parallel", str(SEQUENCES)]
    return Server([*command, "--ctx-size", str(SEQUENCES * CONTEXT), "--no-webui"], "/health")


def measure(server: Server, port: int, scratch: Path) -> Start:
    environment = os.environ | {"XDG_DATA_HOME": str(scratch), "PYTHONPATH": str(server.clone)}
    began = time.perf_counter()
    with running(server.command, cwd=server.clone, stdout=subprocess.DEVNULL, env=environment) as process:
        process.wait_until_ready(port, server.ready)
        ready_s = time.perf_counter() - began
        root = psutil.Process(process.process.pid)
        used = {each.pid: (role, cpu_s(each)) for role, each in tree(root)}
        time.sleep(REST_S)
        roles: dict[str, tuple[float, float, float]] = {}
        for role, each in tree(root):
            pss, anonymous = memory_mb(each)
            cpu, more_pss, more = roles.get(role, (0.0, 0.0, 0.0))
            roles[role] = (cpu + used.get(each.pid, ("", 0.0))[1], more_pss + pss, more + anonymous)
    return Start(ready_s, roles)


def tree(root: psutil.Process) -> Iterator[tuple[str, psutil.Process]]:
    """Each process and its role."""
    yield "server", root
    for each in root.children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            line = " ".join(each.cmdline())
            known = next((role for part, role in ROLES.items() if part in line), "")
            yield known or ("prompts" if each.ppid() == root.pid else "grammars"), each


def cpu_s(process: psutil.Process) -> float:
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def memory_mb(process: psutil.Process) -> tuple[float, float]:
    """PSS and anonymous memory."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    sizes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return int(sizes["Pss"]) / 1e3, int(sizes["Anonymous"]) / 1e3


def options() -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument(
        "--model", type=Path, action="append", metavar="FOLDER", help="bundles in place of the usual ones"
    )
    made.add_argument("--clone", type=Path, metavar="FOLDER", help="another clone of this repository, to compare with")
    made.add_argument("--peers", type=Path, default=ROOT / "build" / "peers", metavar="FOLDER")
    made.add_argument("--gguf", type=Path, metavar="FILE", help="start llama.cpp's server in FOLDER with this file too")
    return made.parse_args()


def servers(arguments: argparse.Namespace, bundle: Path, scratch: Path, port: int) -> dict[str, Server]:
    made = {"npu-gateway": gateway(ROOT, bundle, scratch, port)}
    if arguments.clone:
        made[arguments.clone.name] = gateway(arguments.clone, bundle, scratch, port)
    if arguments.gguf and (server := find_llama_server(arguments.peers)):
        made["llama.cpp"] = llama(server, arguments.gguf, port)
    return made


def main() -> None:
    arguments = options()
    bundles = arguments.model or [bundle_of(USUAL), *([] if arguments.quick else [random_bundle("1b", "q4_0")])]
    rounds = 1 if arguments.quick else arguments.rounds
    rows, bars = [], dict[str, dict[str, float]]()
    for bundle in bundles:
        with tempfile.TemporaryDirectory() as folder:
            port, found = free_port(), dict[str, list[Start]]()
            for number in range(rounds + 1):
                for name, server in servers(arguments, bundle, Path(folder), port).items():
                    start = measure(server, port, Path(folder))
                    print(f"{bundle.name} {name}: {start}", file=sys.stderr, flush=True)
                    if number:
                        found.setdefault(name, []).append(start)
        bars |= _bars(bundle.name, found)
        rows += [row for name, starts in found.items() for row in _rows(bundle.name, name, starts)]
    head = ("model", "server", "process", "seconds to ready", "processor seconds", "PSS, MB", "anonymous, MB")
    how = f"Median and range of {rounds} starts of each server in turn."
    publish("start", f"{how}\n\n{table(head, rows)}", bars, arguments.write)


def _bars(model: str, found: dict[str, list[Start]]) -> dict[str, dict[str, float]]:
    totals = {"processor seconds": 0, "anonymous memory, MB": 2}
    medians = {
        f"{model}: {what}": {name: median(start.total(column) for start in starts) for name, starts in found.items()}
        for what, column in totals.items()
    }
    ready = {name: median(start.ready_s for start in starts) for name, starts in found.items()}
    return {f"{model}: seconds to ready": ready, **medians}


def _rows(model: str, server: str, starts: list[Start]) -> Iterator[tuple[str, ...]]:
    totals = [spread([start.total(column) for start in starts], digits) for column, digits in ((0, 2), (1, 0), (2, 0))]
    yield model, server, "all", spread([start.ready_s for start in starts], 2), *totals
    for role in dict.fromkeys(role for start in starts for role in start.roles):
        parts = [start.roles[role] for start in starts if role in start.roles]
        shown = [spread([part[column] for part in parts], digits) for column, digits in ((0, 2), (1, 0), (2, 0))]
        if len(starts[0].roles) > 1:
            yield "", "", role, "", *shown


if __name__ == "__main__":
    main()
