"""A grammar is first compiled where it can do no harm: in a process that may be killed.

Anybody who may send a request may send a grammar, and compiling one has no bound: a `multipleOf` of a few digits can
take minutes and gigabytes, a chain of a few thousand rules overflows the stack and ends the process. What survives
here, in bounded time and memory, is compiled again in the worker.

The child runs this file as a script and speaks JSON lines: the vocabulary first, then a grammar a line, to each of
which it answers with "" or what is wrong with it. Its tokens are the 256 bytes and the model's special tokens, so it
needs no tokenizer to be read.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import llguidance
import psutil

MAX_SECONDS = 5.0
MAX_BYTES = 768 * 1024 * 1024
#: For the threads that compile; the worker's has twice of it, so that what fits here fits there.
STACK_BYTES = 16 * 1024 * 1024
_POLL_S = 0.05


def limits() -> llguidance.LLParserLimits:
    """What one grammar may cost: 500 ms to build its automata, 30 ms and 5000 parser items a token, 60 MB of states."""
    return llguidance.LLParserLimits(
        step_max_items=5_000, max_lexer_states=40_000, max_grammar_size=200_000, verbose_errors=False
    )


def first_step_error(matcher: llguidance.LLMatcher) -> str:
    """What is wrong with a grammar that has just been compiled: "" when an answer can begin, and get past what it has
    to begin with."""
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        return str(matcher.get_error())
    ahead = matcher.deep_copy()
    ahead.consume_tokens(ahead.compute_ff_tokens())
    if not ahead.is_stopped():
        ahead.compute_bitmask()
    return str(ahead.get_error())


class TooMuch(Exception):
    """Compiling a grammar takes more than anybody gets."""


class CompileSandbox:
    """The child process, started when it is first needed. Used by one thread.

    Args:
        vocab_size: tokens of the model.
        specials: reads the special tokens that a grammar may name, by id.
    """

    def __init__(self, vocab_size: int, specials: Callable[[], Mapping[int, str]]) -> None:
        self._vocab_size, self._specials = vocab_size, specials
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, grammar: str) -> str:
        """Compile `grammar` (the library's own JSON): "" when that went well, else the library's complaint.

        Raises TooMuch when it had to be given up, or ended the process.
        """
        process = self._process = self._process or self._start()
        over = threading.Event()
        watch = threading.Thread(target=_watch, args=(process, over))
        watch.start()
        reply = _ask(process, grammar)
        over.set()
        watch.join()
        if reply is None:
            self.close()
            raise TooMuch(f"compiling it takes more than {MAX_SECONDS:g} seconds or {MAX_BYTES >> 20} MiB")
        return reply

    def close(self) -> None:
        """End the process; the next run starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: this folder's modules must not stand in for others of the same name
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        process.stdin.write(_line({"size": self._vocab_size, "specials": self._specials()}))
        return process


def _ask(process: subprocess.Popen[bytes], grammar: str) -> str | None:
    """The child's answer; None when it is gone."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(_line(grammar))
        process.stdin.flush()
        reply = process.stdout.readline()
    except OSError:
        return None
    return str(json.loads(reply)) if reply else None


def _watch(process: subprocess.Popen[bytes], over: threading.Event) -> None:
    """Kill the child unless it is done in time; it answers with silence then."""
    deadline = time.monotonic() + MAX_SECONDS
    while not over.wait(_POLL_S):
        if time.monotonic() > deadline or _memory(process.pid) > MAX_BYTES:
            process.kill()
            return


def _memory(pid: int) -> int:
    """Bytes held; on Windows a virtual environment's python.exe is a launcher, and the real one its child."""
    try:
        process = psutil.Process(pid)
        return sum(int(each.memory_info().rss) for each in (process, *process.children()))
    except psutil.Error:
        return 0  # it has just ended


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


# -- the child's side --------------------------------------------------------------------------------------------------


class _ByteVocabulary:
    """What llguidance asks of a tokenizer: bytes and special tokens; all other ids are there and mean nothing."""

    bos_token_id = None
    special_token_ids: list[int]

    def __init__(self, size: int, specials: Mapping[str, str]) -> None:
        names = {int(index): name.encode() for index, name in specials.items()}
        plain = [index for index in range(max(size, 256 + len(names))) if index not in names]
        self._ids = plain[:256]
        self.tokens = [b""] * (len(plain) + len(names))
        for byte, index in enumerate(self._ids):
            self.tokens[index] = bytes([byte])
        for index, name in names.items():
            self.tokens[index] = name
        self.special_token_ids = list(names)
        self.eos_token_id = self.special_token_ids[0] if names else self._ids[0]

    def __call__(self, text: bytes | str) -> list[int]:
        return [self._ids[byte] for byte in (text.encode() if isinstance(text, str) else text)]


def _serve(requests: SimpleQueue[bytes]) -> None:
    vocabulary = json.loads(requests.get())
    wrapper: Any = llguidance.TokenizerWrapper(_ByteVocabulary(vocabulary["size"], vocabulary["specials"]))
    tokenizer = llguidance.LLTokenizer(wrapper)
    while True:
        matcher = llguidance.LLMatcher(tokenizer, json.loads(requests.get()), log_level=0, limits=limits())
        sys.stdout.buffer.write(_line(first_step_error(matcher)))
        sys.stdout.buffer.flush()


def _main() -> None:
    """Serve lines until stdin ends: then at once, also in the middle of a grammar."""
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # they reach the whole process group; the worker decides
        if number := getattr(signal, name, None):
            signal.signal(number, signal.SIG_IGN)
    requests: SimpleQueue[bytes] = SimpleQueue()
    threading.stack_size(STACK_BYTES)
    threading.Thread(target=_serve, args=(requests,), daemon=True).start()
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(0)


if __name__ == "__main__":
    _main()
