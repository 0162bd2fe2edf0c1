"""The checks of counts and limits: each passes with a right answer, and fails with a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.commands.verify import accounts
from tests.commands.verify.conftest import Ended
from tests.support.verify_gateway import Answer, Mistake

SUM, STREAMED_SUM, SAME, LIMIT, LONGER, TOO_LONG, AFTER, CANCELLED = [check.name for check in accounts.checks()]


def wrong_sum(body: dict[str, Any], path: str, answer: Answer) -> None:
    prompt, completion, total = answer.usage
    answer.usage = (prompt, completion, total + 1)


def no_counts(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.usage = (0, 0, 0)


def other_counts_in_streams(body: dict[str, Any], path: str, answer: Answer) -> None:
    if body.get("stream"):
        prompt, completion, total = answer.usage
        answer.usage = (prompt, completion + 1, total + 1)


def other_prompt_in_streams(body: dict[str, Any], path: str, answer: Answer) -> None:
    if body.get("stream"):
        prompt, completion, total = answer.usage
        answer.usage = (prompt + 1, completion, total + 1)


def limit_is_ignored(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.usage = (answer.usage[0], 10, answer.usage[0] + 10)


def cut_too_early(body: dict[str, Any], path: str, answer: Answer) -> None:
    if answer.finish == "length":
        answer.usage = (answer.usage[0], 3, answer.usage[0] + 3)


def same_prompt_count(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.usage = (5, answer.usage[1], 5 + answer.usage[1])


def cuts_the_prompt(body: dict[str, Any], path: str, answer: Answer) -> None:
    if answer.status == 400:
        answer.status, answer.text = 200, "Yes."


def other_code(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.code = answer.code and "invalid_request"


def breaks_after() -> Mistake:
    """Nothing but errors after a prompt that is too long."""
    broken: list[int] = []

    def mistake(body: dict[str, Any], path: str, answer: Answer) -> None:
        if broken and answer.status == 200:
            answer.status, answer.code = 500, "internal_error"
        broken.extend([1] if answer.status == 400 else [])

    return mistake


def breaks_after_a_stream() -> Mistake:
    broken: list[int] = []

    def mistake(body: dict[str, Any], path: str, answer: Answer) -> None:
        if broken:
            answer.status, answer.code = 500, "internal_error"
        broken.extend([1] if "thousand" in str(body) else [])

    return mistake


@pytest.mark.parametrize(
    ("mistake", "wrong"),
    [
        (wrong_sum, [SUM, STREAMED_SUM]),
        (no_counts, [SUM, STREAMED_SUM, LIMIT, LONGER, AFTER, CANCELLED]),
        (other_counts_in_streams, [SAME]),
        (other_prompt_in_streams, [SAME]),
        (limit_is_ignored, [LIMIT]),
        (cut_too_early, [LIMIT]),
        (same_prompt_count, [LONGER]),
        (cuts_the_prompt, [TOO_LONG]),
        (other_code, [TOO_LONG]),
        (breaks_after(), [AFTER, CANCELLED]),
        (breaks_after_a_stream(), [CANCELLED]),
    ],
)
def test_mistake_is_found_by_its_checks(ended: Ended, mistake: Mistake, wrong: list[str]) -> None:
    assert ended(accounts.checks(), mistake) == dict.fromkeys(wrong, "gateway")
