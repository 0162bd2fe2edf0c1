"""RecentAnswers and LogRing."""

from __future__ import annotations

import logging
import threading

from gateway.monitoring.observers import AnswerRecord
from gateway.monitoring.recent import MAX_ANSWERS, MAX_CHARACTERS, MAX_LINES, LogRing, PrefixCache, RecentAnswers


def record(number: int, model: str = "m") -> AnswerRecord:
    return AnswerRecord(
        at=0.0, id=f"req-{number}", requested=model, model=model, ending="stop", prompt_tokens=10, cached_tokens=4
    )


def test_answers_are_numbered_and_bounded() -> None:
    recent = RecentAnswers()
    for number in range(1, MAX_ANSWERS + 51):
        recent.add(record(number))
    kept = recent.after(0)
    assert [answer.seq for answer in kept] == list(range(51, MAX_ANSWERS + 51))
    assert [answer.id for answer in recent.after(MAX_ANSWERS + 48)] == ["req-249", "req-250"]
    assert recent.after(MAX_ANSWERS + 50) == []
    assert recent.after(10_000) == kept, "a number from before a restart"


def test_prefix_cache_is_counted_for_each_model() -> None:
    recent = RecentAnswers()
    for model in ("a", "a", "b", ""):
        recent.add(record(1, model))
    assert recent.prefix_cache("a") == PrefixCache(hit_tokens=8, prompt_tokens=20)
    assert recent.prefix_cache("b") == PrefixCache(hit_tokens=4, prompt_tokens=10)
    assert recent.prefix_cache("c") == PrefixCache()


def log_record(text: str, **fields: object) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelname": "INFO", "levelno": logging.INFO, **fields})


def test_log_keeps_last_lines_of_all_threads() -> None:
    ring = LogRing()

    def write(thread: int) -> None:
        for number in range(MAX_LINES):
            ring.handle(log_record(f"{thread} {number}"))

    threads = [threading.Thread(target=write, args=(each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line.n for line in ring.after(0)] == list(range(3 * MAX_LINES + 1, 4 * MAX_LINES + 1))
    assert len(ring.after(4 * MAX_LINES - 1)) == 1


def test_log_has_no_prompt_and_no_endless_line() -> None:
    ring = LogRing()
    ring.handle(log_record("a secret question", has_prompt=True))
    ring.handle(log_record("%d", args=("not a number",)))
    ring.handle(log_record("x" * 100_000))
    [line] = ring.after(0)
    assert line.level == "INFO" and len(line.text) < 2100


def test_long_lines_are_kept_up_to_a_number_of_characters() -> None:
    ring = LogRing()
    for number in range(2 * MAX_LINES):
        ring.handle(log_record(f"{number} " + "x" * 1000))
    lines = ring.after(0)
    assert 0 < MAX_CHARACTERS - sum(len(line.text) for line in lines) < 1010
    assert lines[-1].n == 2 * MAX_LINES
