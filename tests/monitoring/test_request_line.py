"""The log line of a request."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from gateway.monitoring.observers import AnswerRecord
from gateway.monitoring.request_line import RequestLine, error_text, without_prompt


def line(**fields: Any) -> RequestLine:
    return RequestLine(AnswerRecord(**{"at": 0.0, "id": "chatcmpl-0123456789abcdef", "requested": "m", **fields}))


def test_answer_has_models_api_key_times_and_id_in_110_columns() -> None:
    text = str(
        line(
            endpoint="/v1/chat/completions",
            key="laptop",
            requested="llama",
            model="smollm2",
            ending="stop",
            prompt_tokens=512,
            cached_tokens=480,
            completion_tokens=48,
            queue_ms=2.0,
            ttft_ms=85.0,
            per_token_ms=28.57,
        )
    )
    assert text == (
        "llama -> smollm2  chat  laptop  prompt 512 (480 cached)  queue 2 ms  first 85 ms  48 tokens  35.0/s  stop"
        "  ..89abcdef"
    )
    assert (
        len(str(line(endpoint="/v1/chat/completions", key="laptop", ending="stop", prompt_tokens=37, ttft_ms=1.0))) < 93
    )


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"ending": "stop", "completion_tokens": 1, "ttft_ms": 1000.0}, "m  first 1000 ms  1 token  stop"),
        ({"requested": "", "model": "m", "ending": "stop"}, "(none) -> m  stop"),
        ({"ending": "model_not_ready", "status": 503}, "m  503 model_not_ready"),
        ({"ending": "engine_failed", "status": 503, "error": "It broke."}, "m  503 engine_failed: It broke"),
        ({"ending": "cancelled", "status": 499, "total_ms": 3210.0}, "m  cancelled after 3.2 s"),
        ({"endpoint": "/v1/new", "ending": "stop"}, "m  /v1/new  stop"),
        ({"requested": "a", "model": "m", "why": "engine_failed", "ending": "stop"}, "a -> m (engine_failed)  stop"),
        ({"target": "h:1", "target_reason": "only", "attempts": 1, "ending": "stop"}, "m  on h:1  stop"),
        (
            {"target": "h:1", "target_reason": "hedge", "attempts": 2, "hedged": True, "ending": "stop"},
            "m  on h:1 (hedge, 2 attempts, hedged)  stop",
        ),
        (
            {"ending": "length", "has_default_limit": True},
            "m  length (default limit; send max_tokens)",
        ),
        (
            {
                "ending": "stop",
                "completion_tokens": 11,
                "is_slow": True,
                "device_ms": 3810.0,
                "limit_ttft_ms": 1000.0,
                "limit_per_token_ms": 100.0,
            },
            "m  11 tokens  slow: 3.81 s, limit 2 s  stop",
        ),
    ],
)
def test_line_leaves_out_what_is_not_known(fields: dict[str, Any], text: str) -> None:
    assert str(line(**fields)) == text + "  ..89abcdef"


def test_text_is_made_once_for_all_logs() -> None:
    request = line(ending="stop")
    assert str(request) is str(request)


def test_faults_are_warnings() -> None:
    levels = [line(ending="x", status=status).level for status in (200, 404, 499, 500, 503)]
    assert levels == [logging.INFO] * 3 + [logging.WARNING] * 2


def test_text_of_a_client_is_escaped_and_cut() -> None:
    hostile = "x\n12:00:00 INFO forged\r\x1b[31m\u2028" + "x" * 5000
    text = str(
        line(id=hostile, requested=hostile, endpoint=hostile, key=hostile, ending="e", status=400, error=hostile)
    )
    assert text.isprintable() and len(text) < 800
    assert all(
        str(value).isprintable() for value in line(requested=hostile, ending="e", error=hostile).fields().values()
    )


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ("The model 'gpt-4' does not exist; there is smollm2.", "The model 'gpt-4' does not exist; there is smollm2"),
        ("'messages.0.role': 'my secret plan' is not a role.", "'messages.0.role': '...' is not a role"),
        ('Expected one of a, b; got "it\'s my plan".', "Expected one of a, b; got '...'"),
        ("It can't be the model's fault, it isn't.", "It can't be the model's fault, it isn't"),
    ],
)
def test_error_has_no_text_of_a_prompt(message: str, text: str) -> None:
    assert error_text(message) == text


@pytest.mark.parametrize(
    ("message", "texts", "text"),
    [
        ("Cannot read: my secret plan is", ["all of my  secret\nplan is here"], "Cannot read:[...]"),
        ("'hunter2' is not allowed", ["hunter2"], "'[...]' is not allowed"),
        ("No open file", ["open"], "No [...] file"),
        ("No open file", ["a", "", "another text that is long"], "No open file"),
        ("status 500", [], "status 500"),
        ("near the end: x secret word", ["x" * 200_000 + " secret word"], "near the end: [...]"),
    ],
)
def test_what_an_error_repeats_of_a_prompt_is_left_out(message: str, texts: list[str], text: str) -> None:
    assert without_prompt(message, texts) == text


class _CountedText(str):
    """Counts the characters that are read of it."""

    read = 0

    def __getitem__(self, key: Any) -> str:
        part = super().__getitem__(key)
        _CountedText.read += len(part)
        return part

    def split(self, *arguments: Any) -> list[str]:
        _CountedText.read += len(self)
        return super().split(*arguments)


@pytest.mark.parametrize(("text", "count"), [("my secret plan " * 1000, 700), ("my secret plan", 100_000)])
def test_only_the_ends_of_a_long_prompt_are_compared(text: str, count: int) -> None:
    _CountedText.read = 0
    assert without_prompt("a:my secret plan", [_CountedText(text)] * count) == "a:[...]"
    assert 0 < _CountedText.read <= 200_000
