"""The servers that peers.py compares: how each one is started, and how it gets a request."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Protocol

import psutil
from processes import Running, free_port, running
from report import ROOT
from weights import EXACT, USUAL, bundle_of, gguf_file

from gateway.commands.bench.memory import MemoryWatch
from peer.install import find_genai, find_llama_server, python_of

SLOTS = 8
CONTEXT = 2048
REPLY_S = 600  # for one response on a busy machine
CONFIG = """\
default_model = "smollm2"
[server]
port = {port}
[breaker]
enabled = false
[models.smollm2]
path = {path}
threads = {threads}
max_sequences = {slots}
context_length = {context}
"""


class Reply:
    """One response.

    Args:
        first_s: seconds to the first token.
        gap_s: seconds from the first token to the last.
        computed: prompt tokens that did not come from a prefix cache.
        generated: tokens of the response.
    """

    def __init__(self, first_s: float, gap_s: float, computed: int, generated: int) -> None:
        self.first_s, self.gap_s, self.computed, self.generated = first_s, gap_s, computed, generated

    @property
    def tokens_per_s(self) -> float:
        return (self.generated - 1) / self.gap_s


class Peer(Protocol):
    process: psutil.Process
    memory: MemoryWatch
    is_concurrent: bool

    def chat(self, text: str, tokens: int, turns: tuple[str, ...] = ()) -> Reply:
        """Generate exactly `tokens` tokens with greedy decoding.

        Args:
            text: the last user message.
            turns: the messages before it, user and assistant in turn.
        """


class HttpPeer:
    """A server with OpenAI's API."""

    is_concurrent = True

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = psutil.Process(process.pid), port
        self.memory = MemoryWatch(process.pid)

    def chat(self, text: str, tokens: int, turns: tuple[str, ...] = ()) -> Reply:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=REPLY_S)) as connection:
            began = time.perf_counter()
            body = json.dumps(_body([*turns, text], tokens))
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            arrivals: list[float] = []
            usage: dict[str, Any] = {}
            for line in response:
                if line.startswith(b"data: {"):
                    chunk = json.loads(line[6:])
                    if _has_token(chunk):
                        arrivals.append(time.perf_counter())
                    usage = chunk.get("usage") or usage
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        computed = usage["prompt_tokens"] - cached
        return Reply(arrivals[0] - began, arrivals[-1] - arrivals[0], computed, usage["completion_tokens"])


def _body(messages: list[str], tokens: int) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "model": "smollm2",
        "messages": [{"role": roles[i % 2], "content": content} for i, content in enumerate(messages)],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _has_token(chunk: dict[str, Any]) -> bool:
    """A last token without text is visible in the finish reason only."""
    return any(choice["delta"].get("content") or choice["finish_reason"] for choice in chunk.get("choices", ()))


class GenaiPeer:
    """onnxruntime-genai's generator in a separate process. It continues only the last conversation."""

    is_concurrent = False

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = psutil.Process(process.pid)
        self.memory = MemoryWatch(process.pid)
        self._in, self._out = process.stdin, process.stdout

    def chat(self, text: str, tokens: int, turns: tuple[str, ...] = ()) -> Reply:
        assert self._in is not None and self._out is not None
        rendered = f"<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        request = {"text": rendered, "max_tokens": tokens, "keep": bool(turns)}
        self._in.write(json.dumps(request).encode() + b"\n")
        self._in.flush()
        return Reply(**json.loads(self._out.readline()))


def start(stack: ExitStack, folder: Path, threads: int, *, quick: bool) -> dict[str, Peer]:
    """Start the gateway and each peer that is installed in `folder`; `stack` ends them."""
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    bundle = bundle_of(EXACT if quick else USUAL)
    peers: dict[str, Peer] = {"npu-gateway": start_gateway(stack, bundle, threads, scratch)}
    if not quick:
        peers["npu-gateway, exact"] = start_gateway(stack, bundle_of(EXACT), threads, scratch)
    if server := find_llama_server(folder):
        peers["llama.cpp"] = start_llama(stack, server, gguf_file(scratch), threads)
    else:
        print(f"llama.cpp is left out: no llama-server under {folder}. --install compiles it.", file=sys.stderr)
    if find_genai(folder):
        peers["onnxruntime-genai"] = start_genai(stack, python_of(folder), bundle, threads)
    else:
        print(f"onnxruntime-genai is left out: it is not under {folder}. --install installs it.", file=sys.stderr)
    return peers


def start_gateway(stack: ExitStack, bundle: Path, threads: int, folder: Path) -> HttpPeer:
    port, config = free_port(), folder / "config.toml"
    text = CONFIG.format(port=port, path=json.dumps(str(bundle)), threads=threads, slots=SLOTS, context=CONTEXT)
    config.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
    server = stack.enter_context(running(command, cwd=ROOT, stdout=subprocess.DEVNULL))
    server.wait_until_ready(port, "/readyz")
    return HttpPeer(server.process, port)


def start_llama(stack: ExitStack, binary: Path, gguf: Path, threads: int) -> HttpPeer:
    port = free_port()
    command = [str(binary), "--model", str(gguf), "--host", "127.0.0.1", "--port", str(port), "--no-webui"]
    command += ["--threads", str(threads), "--threads-batch", str(threads)]
    command += ["--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT)]
    server = stack.enter_context(running(command, stdout=subprocess.DEVNULL))
    server.wait_until_ready(port, "/health")
    return HttpPeer(server.process, port)


def start_genai(stack: ExitStack, python: Path, bundle: Path, threads: int) -> GenaiPeer:
    command = [str(python), str(Path(__file__).with_name("genai_peer.py")), str(bundle), str(threads)]
    server = stack.enter_context(running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    wait_until_genai_is_ready(server)
    return GenaiPeer(server.process)


def wait_until_genai_is_ready(server: Running) -> None:
    assert server.process.stdout is not None
    if b"ready" not in server.process.stdout.readline():
        server.fail("did not start")
