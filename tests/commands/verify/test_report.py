"""The report: groups, the first fault of each owner, the scores and one verdict."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.commands.verify.outcome import Result
from gateway.commands.verify.report import as_dict, is_kept, lines, verdict


def result(group: str, outcome: Any, name: str = "n", detail: str = "") -> Result:
    return Result(group=group, name=name, outcome=outcome, detail=detail)


def tools(wrong: int) -> list[Result]:
    return [result("tools", "model" if number < wrong else "passed", f"t{number}", "no call") for number in range(20)]


def test_lines_name_the_first_fault_of_each_owner() -> None:
    other = [result("JSON", "gateway", "j", "no JSON"), result("JSON", "passed"), result("reasoning", "skipped")]
    assert list(lines([*tools(2), *other])) == [
        "tools 18/20",
        "  this model: t0: no call (2 of this kind)",
        "JSON 1/2",
        "  gateway: j: no JSON",
        "reasoning -",
        "",
        "tools 18/20, JSON 1/2, reasoning -",
        "The gateway itself is wrong in one check, first in 'JSON: j': report it.",
    ]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (0, "This model calls tools reliably."),
        (1, "This model calls tools reliably."),
        (2, "This model calls tools, with mistakes: 2 of 20 tool checks were wrong."),
        (4, "This model calls tools, with mistakes: 4 of 20 tool checks were wrong."),
        (5, "Do not use this model for agents: 5 of 20 tool checks were wrong."),
        (20, "Do not use this model for agents: 20 of 20 tool checks were wrong."),
    ],
)
def test_verdict_is_about_tools(wrong: int, sentence: str) -> None:
    assert verdict(tools(wrong)) == sentence


def test_model_without_tools_is_for_chats() -> None:
    found = [result("tools", "skipped"), result("JSON", "model")]
    assert verdict(found) == "This model has no tools: use it for chats, not for agents."


def test_json_has_every_check_and_who_is_wrong() -> None:
    found = as_dict("m", "http://h/v1", [result("tools", "model"), result("JSON", "gateway", detail="d")])
    assert found["groups"] == [
        {"group": "tools", "passed": 0, "checks": 1, "gateway_faults": 0},
        {"group": "JSON", "passed": 0, "checks": 1, "gateway_faults": 1},
    ]
    assert found["checks"][1] == {"group": "JSON", "name": "n", "outcome": "gateway", "detail": "d"}
    assert (found["model"], found["url"], found["api_ok"]) == ("m", "http://h/v1", False)


def test_only_faults_of_the_gateway_count_for_the_exit_code() -> None:
    assert is_kept([result("tools", "model"), result("a", "skipped")]) and not is_kept([result("a", "gateway")])
