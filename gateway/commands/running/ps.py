"""`npu-gateway ps`: the running gateways and their models."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from msgspec.structs import asdict

from gateway.commands import options
from gateway.commands.running.api import Readiness, call, converted
from gateway.commands.running.find import Found, add_gateway, find_gateway
from gateway.commands.running.run_file import RunFile, running_gateways
from gateway.commands.tables import Column, write_table
from gateway.errors import GatewayError

_COLUMNS = (
    "MODEL",
    "STATE",
    "DEVICE",
    Column("MEMORY", right=True),
    Column("REQUESTS", right=True),
    "BREAKER",
    Column("UP", right=True),
    "GATEWAY",
    Column("NEEDS", right=True),
    Column("UNLOADED IN", right=True),
)
_LIMIT_S = 5.0


def add_parser(subparsers: options.Subparsers) -> None:
    text = "List the running gateways of this user and their models."
    parser = subparsers.add_parser("ps", help="list running gateways and their models", description=text)
    add_gateway(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.url or arguments.port is not None:
        gateways = [_described(find_gateway(arguments))]
    else:
        gateways = [_described(Found(url=run.url, run=run)) for run in running_gateways()]
    if arguments.json:
        print(json.dumps(gateways, indent=2))
    elif gateways:
        write_table([row for gateway in gateways for row in _rows(gateway)], _COLUMNS)
    else:
        print("No gateway runs; start one with `npu-gateway serve`.", file=sys.stderr)
    return 0


def _described(found: Found) -> dict[str, Any]:
    """What is known of a gateway. `models` and `error`: one of them is empty."""
    models: list[dict[str, Any]] = []
    error = ""
    try:  # 503: no model is ready
        reply = call(found, "GET", "/readyz", dict[str, Any], limit_s=_LIMIT_S, accepts=(503,))
        converted(found, reply, Readiness)
        models = reply["models"]
    except GatewayError as failure:
        error = failure.message
    for model in models:
        model["memory_bytes"] = _memory_bytes(model["engine"].get("pid")) if found.run else None
    return {"url": found.url, **_process(found.run), "error": error, "models": models}


def _process(run: RunFile | None) -> dict[str, Any]:
    if run is None:
        return {}
    known = {
        name: value for name, value in asdict(run).items() if name not in ("token", "url", "created_at", "since_boot_s")
    }
    return {
        **known,
        "uptime_s": round(max(0.0, time.time() - run.started_at), 1),
        "memory_bytes": _memory_bytes(run.pid),
    }


def _memory_bytes(pid: int | None) -> int | None:
    import psutil

    with suppress(psutil.Error):
        return None if pid is None else int(psutil.Process(pid).memory_info().rss)
    return None


def _rows(gateway: dict[str, Any]) -> Iterator[tuple[object, ...]]:
    pid = f" (pid {gateway['pid']})" if "pid" in gateway else ""
    last = (duration(gateway["uptime_s"]) if "uptime_s" in gateway else "", f"{gateway['url']}{pid}")
    if gateway["error"]:
        yield ("-", gateway["error"], "", "", "", "", *last, "", "")
    for model in gateway["models"]:
        engine, memory = model["engine"], model.get("memory", {})  # an older gateway has none
        waiting = f" + {model['waiting']} waiting" if model["waiting"] else ""
        yield (
            model["model"],
            engine["state"],
            engine["device"],
            _megabytes(model["memory_bytes"]),
            f"{model['running']}{waiting}",
            model["breaker"]["state"].replace("_", "-"),
            *last,
            _megabytes(memory.get("need") or None),
            "" if memory.get("expires_s") is None else duration(memory["expires_s"]),
        )


def _megabytes(size: int | None) -> str:
    from gateway.bundles.disk import megabytes

    return "" if size is None else megabytes(size)


def duration(seconds: float) -> str:
    """In the two largest units: "3 d 4 h", "5 min 2 s"."""
    parts: list[str] = []
    left = int(seconds)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, unit)
        if count or parts or unit == 1:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])
