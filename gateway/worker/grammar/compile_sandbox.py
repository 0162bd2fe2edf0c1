"""Compiles a grammar first in a child process, within limits of processor time and memory.

Clients send grammars, and the cost to compile one has no upper bound. A `multipleOf` of a few digits can take minutes
and gigabytes. A chain of a few thousand rules overflows the stack and ends the process. A grammar that compiles here
is compiled again in the worker.

The child runs this file as a script and exchanges JSON lines with the worker. First it gets the vocabulary and replies
"". Then it gets one grammar at a time and replies with "" or the library's error message. Its tokens are the 256 bytes
and the model's special tokens, so it reads no tokenizer.
"""

from __future__ import annotations

import json
import math
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

#: Limits for one grammar. Processor time, because it does not depend on the load of the machine.
MAX_CPU_S = 5.0
MAX_BYTES = 768 * 1024 * 1024
MAX_WALL_S = 60.0  # for the start of the child, and for one that uses no processor time
#: Stack of the compiling thread. The worker's thread has twice as much, so a grammar that compiles here compiles there.
STACK_BYTES = 16 * 1024 * 1024
_POLL_S = 0.05


def limits() -> llguidance.LLParserLimits:
    """The library's limits for one grammar: parser items for each token, lexer states (60 MB), size of the grammar.

    The other limits have the library's defaults, which are about 500 ms to build the automata and 30 ms for each token.
    The library counts operations, not time.
    """
    return llguidance.LLParserLimits(
        step_max_items=5_000, max_lexer_states=40_000, max_grammar_size=200_000, verbose_errors=False
    )


def first_step_error(matcher: llguidance.LLMatcher) -> str:
    """The error of a grammar that has just been compiled; "" if an answer can start and pass its forced beginning."""
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        return str(matcher.get_error())
    ahead = matcher.deep_copy()
    ahead.consume_tokens(ahead.compute_ff_tokens())
    if not ahead.is_stopped():
        ahead.compute_bitmask()
    return str(ahead.get_error())


class CompileLimitError(Exception):
    """A grammar took too much time or memory to compile, or ended the process."""


class CompileSandbox:
    """The child process, started on first use. For one thread.

    Args:
        vocab_size: number of tokens of the model.
        special_tokens: reads the special tokens that a grammar can name, by id.
    """

    def __init__(self, vocab_size: int, special_tokens: Callable[[], Mapping[int, str]]) -> None:
        self._vocab_size, self._special_tokens = vocab_size, special_tokens
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, grammar: str) -> str:
        """Compile `grammar`, JSON in the library's format. Returns "" or the library's error message.

        Raises CompileLimitError if the grammar exceeds a limit or ends the process.
        """
        process = self._process or self._start()
        reply = _request(process, grammar, MAX_CPU_S)
        if reply is None:
            self.close()
            raise CompileLimitError(f"compiling it takes more than {MAX_CPU_S:g} seconds or {MAX_BYTES >> 20} MiB")
        return reply

    def close(self) -> None:
        """Kill the process. The next run starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: do not import this folder's modules in place of others with the same name
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if _request(process, {"size": self._vocab_size, "special_tokens": self._special_tokens()}) is None:
            self.close()
            raise RuntimeError("the process that compiles grammars did not start")
        return process


def _request(process: subprocess.Popen[bytes], value: object, max_cpu_s: float = math.inf) -> str | None:
    """Send a line and wait for the reply. None if the child has ended, or was killed because it exceeded a limit."""
    over = threading.Event()
    watch = threading.Thread(target=_kill_above_limits, args=(process, max_cpu_s, over))
    watch.start()
    try:
        return _exchange(process, value)
    finally:
        over.set()
        watch.join()


def _exchange(process: subprocess.Popen[bytes], value: object) -> str | None:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(_line(value))
        process.stdin.flush()
        reply = process.stdout.readline()
    except OSError:
        return None
    return str(json.loads(reply)) if reply else None


def _kill_above_limits(process: subprocess.Popen[bytes], max_cpu_s: float, over: threading.Event) -> None:
    """Kill the child if it exceeds a limit before `over` is set."""
    deadline, (started_s, _) = time.monotonic() + MAX_WALL_S, _usage(process.pid)
    while not over.wait(_POLL_S):
        cpu_s, size = _usage(process.pid)
        if cpu_s - started_s > max_cpu_s or size > MAX_BYTES or time.monotonic() > deadline:
            process.kill()
            return


def _usage(pid: int) -> tuple[float, int]:
    """Processor seconds and resident bytes of a process and its children.

    On Windows, python.exe of a virtual environment is a launcher, and the interpreter is its child.
    """
    seconds, size = 0.0, 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children()):
            times = each.cpu_times()
            seconds += times.user + times.system
            size += int(each.memory_info().rss)
    except psutil.Error:
        pass  # it has just ended
    return seconds, size


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


# -- in the child ------------------------------------------------------------------------------------------------------


class _ByteVocabulary:
    """The tokenizer interface of llguidance over bytes and special tokens. All other ids exist and have no text."""

    bos_token_id = None
    special_token_ids: list[int]

    def __init__(self, size: int, special_tokens: Mapping[str, str]) -> None:
        names = {int(index): name.encode() for index, name in special_tokens.items()}
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
    wrapper: Any = llguidance.TokenizerWrapper(_ByteVocabulary(vocabulary["size"], vocabulary["special_tokens"]))
    tokenizer = llguidance.LLTokenizer(wrapper)
    _reply("")
    while True:
        matcher = llguidance.LLMatcher(tokenizer, json.loads(requests.get()), log_level=0, limits=limits())
        _reply(first_step_error(matcher))


def _reply(message: str) -> None:
    sys.stdout.buffer.write(_line(message))
    sys.stdout.buffer.flush()


def _main() -> None:
    """Serve lines until stdin closes, then exit at once, also during a compilation."""
    for name in ("SIGINT", "SIGTERM", "SIGBREAK"):  # the whole process group gets them; the worker ends this process
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
