"""The log line of one request, at most 110 columns wide if it was answered:

    12:00:00 INFO    big  chat  laptop  prompt 37 (24 cached)  first 268 ms  8 tokens  22.1/s  stop  ..5e0a3db1
    12:00:00 WARNING big  chat  laptop  503 latency_breaker_open: big is too slow now: ...  ..5e0a3db1

Models, API, name of the key, times and counts, how it ended, and the last digits of the request's id, by which it is
found from `x-request-id` or the id of the reply. "slow: 3.3 s, limit 2 s" is the device time and the budget of the
circuit breaker.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from msgspec.structs import asdict

from gateway.errors import cut
from gateway.monitoring.observers import CANCELLED, AnswerRecord
from gateway.monitoring.output import escape

_LONGEST_NAME = 80
_LONGEST_ERROR = 300
_ID_DIGITS = 8
_COMPARED = 50_000  # characters at each end of a prompt
_LEAST_COUNTED = 250  # characters that a text counts for: the comparison has a cost for each text
_SHARED, _LEAST_SHARED = 12, 4  # characters that a message has from a prompt; a shorter text is compared as a whole
#: A quoted text that can be a part of a prompt: names and numbers have no spaces.
_QUOTED = re.compile(r"""(?<!\w)("[^"]*\s[^"]*"|'[^']*\s[^']*')(?!\w)""")
_APIS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/api/chat": "ollama chat",
    "/api/generate": "ollama",
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/api/embed": "ollama embed",
}


class RequestLine:
    """One request for the log; `str` makes the text only if a handler writes it, and once for all of them."""

    def __init__(self, record: AnswerRecord) -> None:
        self._record = record
        self._text = ""

    @property
    def level(self) -> int:
        """WARNING for a fault of the gateway, its models or their speed."""
        return logging.WARNING if self._record.status >= 500 else logging.INFO

    def fields(self) -> dict[str, Any]:
        """What is known, for a JSON log. Text from a client is printable."""
        known = {name: value for name, value in asdict(self._record).items() if value not in (None, "", False)}
        return {name: printable(value) if isinstance(value, str) else value for name, value in known.items()} | (
            {"error": error_text(self._record.error)} if self._record.error else {}
        )

    def __str__(self) -> str:
        self._text = self._text or "  ".join(self._parts())
        return self._text

    def _parts(self) -> Iterator[str]:
        record = self._record
        yield self._models()
        if record.target:
            yield _target(record)
        if record.endpoint:
            yield printable(_APIS.get(record.endpoint, record.endpoint))
        if record.key:
            yield printable(record.key)
        if record.prompt_tokens:
            cached = f" ({record.cached_tokens} cached)" if record.cached_tokens else ""
            yield f"prompt {record.prompt_tokens}{cached}"
        if record.dropped_messages:
            yield f"{record.dropped_messages} oldest messages left out"
        yield from self._times()
        yield self._ending()
        yield ".." + printable(record.id)[-_ID_DIGITS:]

    def _times(self) -> Iterator[str]:
        record = self._record
        if record.queue_ms is not None and record.queue_ms >= 0.5:
            yield f"queue {record.queue_ms:.0f} ms"
        if record.ttft_ms is not None:
            yield f"first {record.ttft_ms:.0f} ms"
        if record.completion_tokens:
            yield f"{record.completion_tokens} token{'s' * (record.completion_tokens > 1)}"
        if record.per_token_ms:
            yield f"{1000 / record.per_token_ms:.1f}/s"
        if record.is_slow:
            limit_ms = record.limit_ms
            limit = "" if limit_ms is None else f", limit {limit_ms / 1000:.3g} s"
            yield f"slow: {record.device_ms / 1000:.3g} s{limit}"

    def _ending(self) -> str:
        record = self._record
        if record.status == CANCELLED:
            return f"cancelled after {record.total_ms / 1000:.1f} s"
        if record.status != 200:
            return f"{record.status} {record.ending}" + (f": {error_text(record.error)}" if record.error else "")
        if record.ending == "length" and record.has_default_limit:
            return "length (default limit; send max_tokens)"
        return record.ending

    def _models(self) -> str:
        record = self._record
        requested = printable(record.requested) or "(none)"
        if record.model in ("", record.requested):
            return requested
        return f"{requested} -> {record.model}" + (f" ({record.why})" if record.why else "")


def _target(record: AnswerRecord) -> str:
    """`on 10.0.0.2:8000 (failover, 2 attempts)`; without the reason if there is only one server."""
    notes = [record.target_reason] if record.target_reason != "only" else []
    notes += [f"{record.attempts} attempts"] if record.attempts > 1 else []
    notes += ["hedged"] if record.hedged else []
    return f"on {printable(record.target)}" + (f" ({', '.join(notes)})" if notes else "")


def printable(text: str) -> str:
    """Text from a client for one log line: control characters escaped, cut after 80 characters."""
    return escape(cut(text, _LONGEST_NAME))


def without_prompt(message: str, texts: Sequence[str]) -> str:
    """The message of an error without what it repeats of the prompt: another server can quote it.

    Args:
        texts: of the prompt; of a long prompt, only its start and its end are compared.
    """
    message = " ".join(message.split())
    hidden = [False] * len(message)
    for text in _ends(texts):
        known = " ".join(text.split())
        width = min(_SHARED, len(known))
        for start in range(len(message) - width + 1 if width >= _LEAST_SHARED else 0):
            if message[start : start + width] in known:
                hidden[start : start + width] = [True] * width
    shown = "".join("\0" if is_hidden else char for char, is_hidden in zip(message, hidden, strict=True))
    return re.sub("\0+", "[...]", shown)


def _ends(texts: Sequence[str]) -> Iterable[str]:
    """All texts, or of a long prompt those at its two ends."""
    if sum(max(len(text), _LEAST_COUNTED) for text in texts) <= 2 * _COMPARED:
        return texts
    starts = [text[:size] for text, size in _within(texts)]
    return starts + [text[-size:] for text, size in _within(reversed(texts))]


def _within(texts: Iterable[str]) -> Iterator[tuple[str, int]]:
    """The first texts, and how much of each is compared."""
    left = _COMPARED
    for text in texts:
        if left <= 0:
            return
        yield text, left
        left -= max(len(text), _LEAST_COUNTED)


def error_text(message: str) -> str:
    """The message of an error for the log, on one line, without quoted text that can be a part of a prompt."""
    return escape(cut(_QUOTED.sub("'...'", message), _LONGEST_ERROR)).rstrip(".")
