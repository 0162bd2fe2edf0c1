"""The checks of tool calls: each passes with a right answer, and fails with a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.commands.verify import tools
from tests.commands.verify.conftest import Ended
from tests.support.verify_gateway import Answer, Mistake

NAMES = [check.name for check in tools.checks()]
CHOSEN, RESULTS, GREETING = NAMES[:12], NAMES[12:14], NAMES[14]  # the model chooses to call, or to answer
NONE, REQUIRED, NAMED, SINGLE, STREAMED = NAMES[15:]
FORCED = [REQUIRED, NAMED, SINGLE, STREAMED]


def forced(body: dict[str, Any]) -> bool:
    return body.get("tool_choice", "auto") != "auto"


def never_calls(body: dict[str, Any], path: str, answer: Answer) -> None:
    if not forced(body):
        answer.calls, answer.text, answer.finish = [], "I cannot do that.", "stop"


def always_calls(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.calls, answer.finish = [("get_weather", {"city": "Bonn"})], "tool_calls"


def broken_arguments(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.calls = [(name, '{"x": ') for name, _ in answer.calls]


def missing_argument(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.calls = [(name, {}) for name, _ in answer.calls]


def other_word(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.calls = [(name, dict.fromkeys(dict(values), "other")) for name, values in answer.calls]  # type: ignore[arg-type]


def twice(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.calls = answer.calls * 2


def ignores_the_choice(body: dict[str, Any], path: str, answer: Answer) -> None:
    if forced(body):
        answer.calls, answer.text, answer.finish = [], "No.", "stop"


def without_begin(body: dict[str, Any], path: str, answer: Answer) -> None:
    if forced(body) and answer.calls:
        answer.calls, answer.finish = [], "length"


def without_end(body: dict[str, Any], path: str, answer: Answer) -> None:
    if forced(body) and answer.calls:
        answer.finish = "length"


def wrong_finish(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.finish = "stop"


def by(model: list[str], gateway: list[str]) -> dict[str, str]:
    return dict.fromkeys(model, "model") | dict.fromkeys(gateway, "gateway")


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (never_calls, by([*CHOSEN, *RESULTS], [])),
        (always_calls, by([*CHOSEN, *RESULTS, GREETING], [NONE, NAMED, STREAMED])),
        (broken_arguments, by(CHOSEN, FORCED)),
        (missing_argument, by(CHOSEN, FORCED)),
        (other_word, by(CHOSEN, [])),
        (twice, by(CHOSEN, FORCED)),
        (ignores_the_choice, by([], FORCED)),
        (without_end, by(FORCED, [])),
        (without_begin, by(FORCED, [])),
        (wrong_finish, by([], [*CHOSEN, *FORCED])),
    ],
)
def test_mistake_is_found_by_its_checks(ended: Ended, mistake: Mistake, expected: dict[str, str]) -> None:
    assert ended(tools.checks(), mistake) == expected
