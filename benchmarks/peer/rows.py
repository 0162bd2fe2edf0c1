"""What peers.py measures: groups of figures that one short measurement of a server gives."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from peer.clients import Peer, Reply
from peer.starting import Limits, Start
from peer.usage import PeakMemory, Tree

WORDS = ("sea", "ship", "wind", "rope", "mast", "wave", "tide", "sand", "fish", "gull", "salt", "rock", "sail", "net")
TEMPLATE = 32  # tokens of a chat with one message, without the message
DEPTHS = (2048, 4096, 8192)  # tokens in the KV cache
Figures = dict[str, float]


class Contender:
    """A server under measurement.

    Args:
        trees: gets the processes of each server that is started.
        files: what it needs on the disk.
        stack: ends the server that answers the rows which need no new one.
    """

    def __init__(self, name: str, start: Start, files: Path, trees: list[Tree], stack: ExitStack) -> None:
        self.name, self.files = name, files
        self._start, self._trees, self._stack = start, trees, stack
        self._peer: Peer | None = None

    def launch(self, stack: ExitStack, limits: Limits) -> Peer:
        peer = self._start(stack, limits)
        self._trees.append(peer.tree)
        return peer

    def start_once(self) -> None:
        """The first start reads the files from the disk, checks them and packs weights."""
        with ExitStack() as stack:
            self.warm(stack, Limits())

    @property
    def peer(self) -> Peer:
        if self._peer is None:
            self._peer = self.warm(self._stack, Limits())
        return self._peer

    def warm(self, stack: ExitStack, limits: Limits) -> Peer:
        """A new server after its first request, which is slower than others."""
        peer = self.launch(stack, limits)
        peer.chat("What is there to say?", 4)
        return peer


class Texts:
    """The prompts of a pair: the same for each server. No prompt occurs twice."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def fresh(self, words: int) -> str:
        return " ".join(self._random.choices(WORDS, k=words))


class Row(NamedTuple):
    """A measurement. Its figures may be empty, if it does not apply to the server.

    Args:
        pairs: how many calm ones are wanted.
    """

    pairs: int
    measure: Callable[[Contender, Texts], Figures]


def _start_up(contender: Contender, texts: Texts) -> Figures:
    with ExitStack() as stack:
        began = time.perf_counter()
        peer = contender.launch(stack, Limits())
        ready_s = time.perf_counter() - began
        peer.tree.refresh()
        memory = peer.tree.memory()
        return {
            "start to ready, s": ready_s,
            "CPU s of the start": peer.tree.cpu_s(),
            "memory after load, MB": memory.resident,
            "anonymous part after load, MB": memory.anonymous,
        }


def _decode(tokens: int, contender: Contender, texts: Texts) -> Figures:
    peer = contender.peer
    before_s = peer.tree.cpu_s()
    reply = peer.chat(texts.fresh(8), tokens)
    used_s = peer.tree.cpu_s() - before_s
    return {"decode, tokens/s": reply.tokens_per_s, f"CPU s of a response of {tokens} tokens": used_s}


def _prefill(tokens: int, contender: Contender, texts: Texts) -> Figures:
    return {f"prefill {tokens}, tokens/s": _speed(contender.peer.chat(texts.fresh(tokens - TEMPLATE), 1))}


def _turns(tokens: int, contender: Contender, texts: Texts) -> Figures:
    """A chat of two turns, whose first prompt has `tokens`."""
    peer, question = contender.peer, texts.fresh(tokens - TEMPLATE)
    first = peer.chat(question, 1)
    second = peer.chat("Why?", 1, turns=(question, "ok"))
    return {
        f"prefill {tokens}, tokens/s": _speed(first),
        f"first token, cold chat of {tokens}, ms": 1000 * first.first_s,
        "first token, second turn, ms": 1000 * second.first_s,
    }


def _long_chat(tokens: int, contender: Contender, texts: Texts) -> Figures:
    """On a new server, because of its peak memory."""
    with ExitStack() as stack:
        peer = contender.warm(stack, Limits())
        peer.tree.refresh()
        watch = PeakMemory(peer.tree)
        question = texts.fresh(tokens - TEMPLATE)
        reply = peer.chat(question, 1)
        peer.chat("Why?", 8, turns=(question, "ok"))
        watch.stop()
        return {
            f"prefill {tokens}, tokens/s": _speed(reply),
            "peak memory, long chat, MB": watch.peak.resident,
            "anonymous part, long chat, MB": watch.peak.anonymous,
        }


def _streams(count: int, tokens: int, contender: Contender, texts: Texts) -> Figures:
    peer = contender.peer
    if not peer.is_concurrent:
        return {}
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        replies = list(pool.map(lambda text: peer.chat(text, tokens), [texts.fresh(8) for _ in range(count)]))
    speed = sum(reply.generated for reply in replies) / (time.perf_counter() - began)
    last_ms = 1000 * max(reply.first_s for reply in replies)
    return {f"{count} streams in all, tokens/s": speed, f"{count} streams, last first token, ms": last_ms}


def _deep(depths: tuple[int, ...], contender: Contender, texts: Texts) -> Figures:
    """One conversation that grows. Each speed of prefill is that of the tokens since the depth before."""
    found: Figures = {}
    with ExitStack() as stack:
        peer = contender.warm(stack, Limits(slots=1, context=depths[-1] + 256))
        if not peer.is_concurrent:
            return {}
        watch = PeakMemory(peer.tree)
        text = texts.fresh(depths[0] - TEMPLATE)
        for depth in depths:
            text += " " + texts.fresh(depth - TEMPLATE - len(text.split()))
            reply = peer.chat(text.strip(), 16)
            found[f"prefill up to {depth}, tokens/s"] = _speed(reply)
            found[f"decode at {depth}, tokens/s"] = reply.tokens_per_s
        watch.stop()
    return found | {f"peak memory at {depths[-1]}, MB": watch.peak.resident}


def _idle(seconds: float, contender: Contender, texts: Texts) -> Figures:
    tree = contender.peer.tree
    before_s = tree.cpu_s()
    time.sleep(seconds)
    return {"CPU while idle, %": 100 * (tree.cpu_s() - before_s) / seconds}


def _disk(contender: Contender, texts: Texts) -> Figures:
    found = contender.files
    paths = found.rglob("*") if found.is_dir() else [found]
    return {"on disk, MB": sum(path.stat().st_size for path in paths if path.is_file()) / 1e6}


def _speed(reply: Reply) -> float:
    return reply.computed / reply.first_s


def rows(longest: int) -> dict[str, Row]:
    """Those that start servers come first, as long as no others hold memory.

    Args:
        longest: tokens of the longest context.
    """
    depths = tuple(depth for depth in DEPTHS if depth <= longest)
    return {
        "start": Row(3, _start_up),
        **({"deep": Row(1, partial(_deep, depths))} if depths else {}),
        "chat-1500": Row(2, partial(_long_chat, 1500)),
        "decode": Row(5, partial(_decode, 48)),
        "prefill-128": Row(5, partial(_prefill, 128)),
        "turns-512": Row(3, partial(_turns, 512)),
        "streams-2": Row(3, partial(_streams, 2, 24)),
        "streams-4": Row(3, partial(_streams, 4, 24)),
        "streams-8": Row(2, partial(_streams, 8, 16)),
        "idle": Row(1, partial(_idle, 5)),
        "disk": Row(1, _disk),
    }


#: For a run that only shows that everything works
QUICK = {
    "disk": Row(1, _disk),
    "start": Row(1, _start_up),
    "decode": Row(1, partial(_decode, 8)),
    "turns": Row(1, partial(_turns, 64)),
    "streams-2": Row(1, partial(_streams, 2, 4)),
    "idle": Row(1, partial(_idle, 0.5)),
}
