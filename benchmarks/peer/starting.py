"""How each server that peers.py compares is started."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from processes import free_port, running, running_gateway

from peer.clients import GenaiPeer, HttpPeer, Peer
from peer.install import find_genai, find_llama_server, python_of

GATEWAY = "npu-gateway"
MODEL = """\
[models.measured]
path = {path}
threads = {threads}
max_sequences = {slots}
context_length = {context}
"""


class Model(NamedTuple):
    """The same weights for each server."""

    name: str
    bundle: Path
    gguf: Path


class Limits(NamedTuple):
    """What a server is started for."""

    slots: int = 8
    context: int = 2048


#: Starts the server; the stack ends it
Start = Callable[[ExitStack, Limits], Peer]


def contenders(folder: Path, model: Model, threads: int) -> Iterator[tuple[str, Start]]:
    """The gateway, and each peer that is installed in `folder`, by name."""
    yield GATEWAY, partial(_start_gateway, model.bundle, threads)
    if server := find_llama_server(folder):
        yield "llama.cpp", partial(_start_llama, server, model.gguf, threads)
    else:
        print(f"llama.cpp is left out: no llama-server under {folder}. --install installs it.", file=sys.stderr)
    if find_genai(folder):
        yield "onnxruntime-genai", partial(_start_genai, python_of(folder), model.bundle, threads)
    else:
        print(f"onnxruntime-genai is left out: it is not under {folder}. --install installs it.", file=sys.stderr)


def _start_gateway(bundle: Path, threads: int, stack: ExitStack, limits: Limits) -> HttpPeer:
    model = MODEL.format(path=json.dumps(str(bundle)), threads=threads, **limits._asdict())
    server, port = stack.enter_context(running_gateway(model))
    return HttpPeer(server.process, port)


def _start_llama(binary: Path, gguf: Path, threads: int, stack: ExitStack, limits: Limits) -> HttpPeer:
    port = free_port()
    command = [str(binary), "--model", str(gguf), "--host", "127.0.0.1", "--port", str(port), "--no-webui"]
    command += ["--threads", str(threads), "--threads-batch", str(threads)]
    command += ["--parallel", str(limits.slots), "--ctx-size", str(limits.slots * limits.context)]
    server = stack.enter_context(running(command, stdout=subprocess.DEVNULL))
    server.wait_until_ready(port, "/health")
    return HttpPeer(server.process, port)


def _start_genai(python: Path, bundle: Path, threads: int, stack: ExitStack, limits: Limits) -> GenaiPeer:
    script = str(Path(__file__).with_name("genai_peer.py"))
    command = [str(python), script, str(bundle), str(threads), str(limits.context)]
    server = stack.enter_context(running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    assert server.process.stdout is not None
    if b"ready" not in server.process.stdout.readline():
        server.fail("did not start")
    return GenaiPeer(server.process)
