"""How each server that peers.py compares gets a request, and what its response took."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import closing
from http.client import HTTPConnection
from typing import Any, NamedTuple, Protocol

from peer.usage import Tree

REPLY_S = 900  # for one response on a busy machine


class Reply(NamedTuple):
    """One response.

    Args:
        first_s: seconds to the first token.
        gap_s: seconds from the first token to the last.
        computed: prompt tokens that did not come from a prefix cache.
        generated: tokens of the response.
    """

    first_s: float
    gap_s: float
    computed: int
    generated: int

    @property
    def tokens_per_s(self) -> float:
        return (self.generated - 1) / self.gap_s


class Peer(Protocol):
    tree: Tree
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
        self.tree, self._port = Tree(process.pid), port

    def chat(self, text: str, tokens: int, turns: tuple[str, ...] = ()) -> Reply:
        with closing(HTTPConnection("127.0.0.1", self._port, timeout=REPLY_S)) as connection:
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
                    assert "error" not in chunk, chunk
                    if _has_token(chunk):
                        arrivals.append(time.perf_counter())
                    usage = chunk.get("usage") or usage
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        computed = usage["prompt_tokens"] - cached
        return Reply(arrivals[0] - began, arrivals[-1] - arrivals[0], computed, usage["completion_tokens"])


def _body(messages: list[str], tokens: int) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {
        "model": "measured",
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
        self.tree = Tree(process.pid)
        self._in, self._out = process.stdin, process.stdout

    def chat(self, text: str, tokens: int, turns: tuple[str, ...] = ()) -> Reply:
        assert self._in is not None and self._out is not None
        rendered = f"<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        request = {"text": rendered, "max_tokens": tokens, "keep": bool(turns)}
        self._in.write(json.dumps(request).encode() + b"\n")
        self._in.flush()
        return Reply(**json.loads(self._out.readline()))
