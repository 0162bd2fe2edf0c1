"""The checks of JSON: each passes with a right answer, and fails with a wrong one."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.commands.verify import structured
from tests.commands.verify.conftest import Ended
from tests.support.verify_gateway import Answer, Mistake

NAMES = [check.name for check in structured.checks()]


def prose(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.text = f"Here is the JSON: {answer.text}"


def other_words(body: dict[str, Any], path: str, answer: Answer) -> None:
    replaced = {"Paris": "Rome", "31": "30", "apple": "plum", "green": "red", "Eve": "Ada", "true": "false"}
    for word, other in replaced.items():
        answer.text = answer.text.replace(word, other)


def without_end(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.text, answer.finish = answer.text[:-1], "length"


def one_more_key(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.text = f'{{"more": 1, {answer.text[1:]}'


def only_text(body: dict[str, Any], path: str, answer: Answer) -> None:
    answer.text = answer.text.replace("31", '"31"').replace("12}", '"12"}').replace("true", '"true"')


def strict_only(body: dict[str, Any], path: str, answer: Answer) -> None:
    if not body["response_format"].get("json_schema", {}).get("strict"):
        answer.text = "no JSON"


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (prose, dict.fromkeys(NAMES, "gateway")),
        (other_words, dict.fromkeys(NAMES, "model")),
        (without_end, dict.fromkeys(NAMES, "model")),
        (one_more_key, dict.fromkeys(NAMES[3:], "gateway")),
        (only_text, dict.fromkeys([NAMES[4], NAMES[6], NAMES[7], NAMES[9]], "gateway")),
        (strict_only, dict.fromkeys([*NAMES[:3], NAMES[8]], "gateway")),
    ],
)
def test_mistake_is_found_by_its_checks(ended: Ended, mistake: Mistake, expected: dict[str, str]) -> None:
    assert ended(structured.checks(), mistake) == expected
