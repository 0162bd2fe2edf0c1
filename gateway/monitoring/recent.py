"""The last answers and the last log lines, in memory, for the live view of the page. Both are bounded.

The log lines never have prompts, also with `server.log_prompts`: one key must not show the prompts of another.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TypeVar

from msgspec import Struct
from msgspec.structs import asdict

from gateway.errors import cut
from gateway.monitoring.observers import AnswerRecord
from gateway.monitoring.output import escape

MAX_ANSWERS = 200
MAX_LINES = 500
MAX_CHARACTERS = 200_000  # of all lines: thousands of clients may read them slowly
_LONGEST_TEXT = 2000  # characters, with the traceback


class RecentAnswer(AnswerRecord, frozen=True, kw_only=True):
    seq: int  # 1 for the first request after the start


class PrefixCache(Struct):
    """Prompt tokens since the start, and how many of them came from the prefix cache."""

    hit_tokens: int = 0
    prompt_tokens: int = 0


class RecentAnswers:
    """The last answers of all models. Used on the event loop only; `add` is an observer."""

    def __init__(self) -> None:
        self._answers: deque[RecentAnswer] = deque(maxlen=MAX_ANSWERS)
        self._seq = 0
        self._caches: dict[str, PrefixCache] = {}

    def add(self, record: AnswerRecord) -> None:
        self._seq += 1
        self._answers.append(RecentAnswer(seq=self._seq, **asdict(record)))
        if record.model:
            cache = self._caches.setdefault(record.model, PrefixCache())
            cache.hit_tokens += record.cached_tokens
            cache.prompt_tokens += record.prompt_tokens

    def after(self, seq: int) -> list[RecentAnswer]:
        """The answers after number `seq`; all of them if that number comes from before a restart."""
        return _after(self._answers, [answer.seq for answer in self._answers], seq)

    def prefix_cache(self, model: str) -> PrefixCache:
        return self._caches.get(model, PrefixCache())


class LogLine(Struct, frozen=True):
    """One record of the log. `n`: 1 for the first one. `time`: seconds since 1970."""

    n: int
    time: float
    level: str
    text: str


class LogRing(logging.Handler):
    """The last lines of the log. Threads may log and read at any time."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[LogLine] = deque()
        self._n = 0
        self._characters = 0
        self._guard = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "has_prompt", False):
            return
        try:
            text = "\n".join(map(escape, cut(self.format(record), _LONGEST_TEXT).splitlines()))
        except Exception:  # as other handlers do; the log itself reports the wrong record
            return
        with self._guard:
            self._n += 1
            self._lines.append(LogLine(self._n, record.created, record.levelname, text))
            self._characters += len(text)
            while len(self._lines) > MAX_LINES or self._characters > MAX_CHARACTERS:
                self._characters -= len(self._lines.popleft().text)

    def after(self, n: int) -> list[LogLine]:
        """The lines after number `n`; all of them if that number comes from before a restart."""
        with self._guard:
            return _after(self._lines, [line.n for line in self._lines], n)


T = TypeVar("T")


def _after(items: deque[T], numbers: list[int], number: int) -> list[T]:
    is_other_start = not numbers or number > numbers[-1]
    return [item for item, own in zip(items, numbers, strict=True) if is_other_start or own > number]
