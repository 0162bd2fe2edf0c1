"""The checks of texts: each passes with a right answer, and fails with a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.commands.verify import answers
from tests.commands.verify.conftest import Ended
from tests.support.verify_gateway import Answer, Mistake, right_answer

NAMES = [check.name for check in answers.checks()]
STOP, REASONING, TEXT = NAMES[:4], NAMES[4:7], NAMES[7:]


def ignores_stop(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.text = right_answer({**body, "stop": []}, path).text


def first_stop_only(body: dict[str, Any], path: str, answer: Answer) -> None:
    if isinstance(body.get("stop"), list):
        ignores_stop(body, path, answer)


def nothing_with_stop(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.text = "" if body.get("stop") else answer.text


def length_with_stop(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.finish = "length" if body.get("stop") else answer.finish


def reasoning_in_the_answer(body: dict[str, Any], path: str, answer: Answer) -> None:
    if answer.reasoning:
        answer.text, answer.reasoning = f"<think>{answer.reasoning}</think>{answer.text}", ""


def marks_in_the_reasoning(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.reasoning = answer.reasoning and f"<think>{answer.reasoning}"


def endless_reasoning(body: dict[str, Any], path: str, answer: Answer) -> None:
    if answer.reasoning:
        answer.text, answer.finish = "", "length"


def refuses_reasoning(body: dict[str, Any], path: str, answer: Answer) -> None:
    if any("reasoning_content" in message for message in body["messages"]):
        answer.status, answer.code = 400, "unknown_field"


def no_reasoning(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.reasoning = ""


def dull(body: dict[str, Any], path: str, answer: Answer) -> None:
    if "Count from" not in str(body):
        answer.text = "I am a language model."


def short(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.text = "a"


def refuses_parts(body: dict[str, Any], path: str, answer: Answer) -> None:
    if isinstance(body["messages"][0]["content"], list):
        answer.status, answer.code = 400, "invalid"


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (ignores_stop, dict.fromkeys(STOP[:3], "gateway")),
        (first_stop_only, {STOP[1]: "gateway"}),
        (nothing_with_stop, dict.fromkeys(STOP, "gateway")),
        (length_with_stop, dict.fromkeys(STOP, "gateway")),
        (reasoning_in_the_answer, dict.fromkeys(REASONING, "gateway")),
        (marks_in_the_reasoning, dict.fromkeys(REASONING, "gateway")),
        (endless_reasoning, dict.fromkeys(REASONING[:2], "model")),
        (refuses_reasoning, {REASONING[2]: "gateway"}),
        (no_reasoning, dict.fromkeys(REASONING, "skipped")),
        (dull, dict.fromkeys([*REASONING[:2], *TEXT], "model")),
        (short, dict.fromkeys([*STOP[:3], *REASONING[:2], *TEXT], "model")),
        (refuses_parts, {NAMES[-1]: "gateway"}),
    ],
)
def test_mistake_is_found_by_its_checks(ended: Ended, mistake: Mistake, expected: dict[str, str]) -> None:
    assert ended(answers.checks(), mistake) == expected
