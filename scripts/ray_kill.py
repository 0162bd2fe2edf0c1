"""A local Ray cluster with two replicas of the gateway under load, one of which is killed: how does each request end?

    python -m scripts.ray_kill [--requests 200] [--at-once 40] [--kill Gateway] [--front]

Needs the extra `ray`. The model is scripted, the HTTP real. `--front`: two applications with one replica each are the
targets of an upstream model, and the requests go to that gateway. Exit code 1 if a request has no ending, or if one
failed although nothing of its answer had been sent; of a killed ingress, the connections break.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil

MODEL = "scripted"
_WORDS = 60
_CONFIG = f"""
[models.{MODEL}]
engine = "scripted"
max_sequences = 64
queue = 512
script = {{ replies = ["{" ".join(f"word{number}" for number in range(_WORDS))}"], ttft_s = 0.005, token_s = 0.002 }}

[usage]
enabled = false
"""
_FRONT = """
[models.{model}]
engine = "upstream"
max_sequences = 64
queue = 512
targets = [{{ url = "http://127.0.0.1:{port}/a/v1" }}, {{ url = "http://127.0.0.1:{port}/b/v1" }}]

[usage]
enabled = false
"""
_LIMIT_S = 120.0  # for one request; one that takes longer has no ending

#: How a request ends. An "error" is an HTTP status, or a frame before the content.
ENDINGS = (
    "complete",
    "error frame after content",
    "broken after content",
    "broken before content",
    "error",
    "error of a request that is not streamed",
    "no ending",
)


@contextmanager
def cluster(config: Path, port: int, replicas: int = 2, apps: Sequence[str] = ("/",)) -> Iterator[None]:
    """A local cluster with the gateway on `port`: one application for each route prefix."""
    import ray
    from ray import serve

    from gateway.commands.ray.app import build

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        for prefix in apps:
            application = build({"config": str(config), "replicas": replicas})
            serve.run(application, name=prefix.strip("/") or "default", route_prefix=prefix)
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def actors(name: str) -> list[psutil.Process]:
    """The processes of a deployment's replicas: `Gateway`, or `a:Gateway` of one application. Oldest first."""
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        title = " ".join(process.info["cmdline"] or [])
        if title.startswith("ray::ServeReplica:") and f":{name}" in title:
            found.append(process)
    return sorted(found, key=lambda process: process.info["create_time"])


async def load(url: str, requests: int, at_once: int, kill: Callable[[], None]) -> list[str]:
    """The ending of each request. `kill()` is called when half of them have begun."""
    slots, begun = asyncio.Semaphore(at_once), 0

    async def one(client: httpx.AsyncClient, number: int) -> str:
        nonlocal begun
        async with slots:
            begun += 1
            if begun == requests // 2:
                kill()
            try:
                return await asyncio.wait_for(_ending(client, number), _LIMIT_S)
            except TimeoutError:
                return "no ending"

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        return list(await asyncio.gather(*(one(client, number) for number in range(requests))))


async def _ending(client: httpx.AsyncClient, number: int) -> str:
    """Every third request is not streamed; each belongs to one of ten conversations."""
    messages = [{"role": "user", "content": f"Conversation {number % 10}. " * 60}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 2 * _WORDS, "stream": number % 3 != 0}
    has_content = False
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return "error" if body["stream"] else "error of a request that is not streamed"
            if not body["stream"]:
                reply = json.loads(await response.aread())
                return "complete" if reply["choices"][0]["finish_reason"] == "stop" else "broken before content"
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return "complete"
                event = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if "error" in event:
                    return "error frame after content" if has_content else "error"
                has_content = has_content or any(choice["delta"].get("content") for choice in event.get("choices", ()))
    except httpx.HTTPError:
        pass
    return "broken after content" if has_content else "broken before content"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def front(folder: Path, port: int) -> Iterator[int]:
    """A gateway before the applications /a and /b on `port`; its own port."""
    config, own = folder / "front.toml", free_port()
    config.write_text(_FRONT.format(model=MODEL, port=port), encoding="utf-8")
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config), "--port", str(own)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while not _is_ready(own):
                time.sleep(0.1)
            yield own
        finally:
            process.terminate()


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def run(requests: int, at_once: int, kill: str, has_front: bool) -> Counter[str]:
    """The number of each ending. `kill`: the deployment of which a replica is killed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        config, port = folder / "config.toml", free_port()
        config.write_text(_CONFIG, encoding="utf-8")
        apps, replicas = (("/a", "/b"), 1) if has_front else (("/",), 2)
        stack.enter_context(cluster(config, port, replicas, apps))
        victim = actors(kill)[0]
        if has_front:
            port = stack.enter_context(front(folder, port))
        return Counter(asyncio.run(load(f"http://127.0.0.1:{port}", requests, at_once, victim.kill)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=40)
    parser.add_argument("--kill", default="Gateway", choices=("Gateway", "Ingress"))
    parser.add_argument("--front", action="store_true")
    arguments = parser.parse_args()
    found = run(arguments.requests, arguments.at_once, arguments.kill, arguments.front)
    for ending in ENDINGS:
        print(f"{ending:42}{found[ending]:6}")
    return 1 if any(found[fault] for fault in _faults(arguments)) else 0


def _faults(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The endings that must not be. Ray's proxy does not send a request to another ingress."""
    if arguments.kill == "Ingress" and not arguments.front:
        return ("no ending",)
    return ("no ending", "error", "broken before content", "error of a request that is not streamed")


if __name__ == "__main__":
    sys.exit(main())
