"""The verdict: the first cause that explains what was seen."""

from __future__ import annotations

import pytest

from gateway.commands.doctor.finding import CAUSES, Finding, Level, Symptom
from gateway.commands.doctor.verdict import verdict


def finding(cause: str, level: Level = "note", shows: Symptom | None = None) -> Finding:
    return Finding(
        level, f"check of {cause}", f"detail of {cause}", cause, f"because of {cause}.", f"mend {cause}.", shows
    )


SLOW = Finding("note", "speed of m", "5 tokens/s", "device", "CPU, 2 threads, 5 tokens/s", "take another", "slow")
OFF = finding("provider", shows="not on the NPU")
BROKEN = finding("load", "bad")


@pytest.mark.parametrize(
    ("findings", "cause"),
    [
        # An x64 Python has no NPU library for ARM64, finds no driver and loads no bundle for the NPU.
        ([BROKEN, finding("driver", "bad"), finding("libraries", "bad"), finding("interpreter", "bad")], "interpreter"),
        ([BROKEN, finding("driver", "bad"), finding("libraries", "bad")], "libraries"),
        ([BROKEN, finding("bundle is for another chip", "bad"), finding("driver", "bad")], "driver"),
        ([BROKEN, finding("bundle needs a newer runtime", "bad")], "bundle needs a newer runtime"),
        ([BROKEN, finding("bundle is damaged", "bad")], "bundle is damaged"),
        ([finding("upstream", "bad"), finding("port", "bad")], "port"),
        ([SLOW, finding("threads"), OFF], "provider"),
        ([SLOW, finding("interpreter", "bad", "not on the NPU"), OFF], "interpreter"),
        ([SLOW, finding("threads")], "threads"),
        ([SLOW, finding("memory pressure"), finding("threads")], "threads"),
        ([SLOW, finding("context"), finding("memory pressure")], "memory pressure"),
        ([SLOW, finding("busy"), finding("power")], "power"),
        ([SLOW, finding("burst"), finding("partly on the CPU")], "partly on the CPU"),
        ([SLOW, finding("threads"), finding("burst")], "burst"),
        ([SLOW, finding("disk")], "device"),  # a full disk makes no answer slow
        ([SLOW], "device"),
        # The breaker is open because the configured limit is below what this machine needs.
        ([finding("breaker", "bad"), finding("threads"), finding("budget")], "budget"),
        ([finding("breaker", "bad"), finding("threads")], "threads"),
        ([finding("breaker", "bad"), finding("busy"), finding("power")], "breaker"),
        ([finding("breaker", "bad"), OFF], "breaker"),  # a model that is on the CPU by choice refuses nothing
        ([finding("breaker", "bad")], "breaker"),
    ],
)
def test_first_cause_that_explains_the_symptom_is_the_verdict(findings: list[Finding], cause: str) -> None:
    assert verdict(findings).cause == cause
    assert verdict(findings[::-1]).cause == cause


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_a_verdict_of_each_symptom_that_it_explains(cause: str) -> None:
    for symptom in CAUSES[cause]:
        found = verdict([Finding("ok", "speed of m", "fast"), finding(cause, shows=symptom)])
        assert (found.symptom, found.cause) == (symptom, cause)
        assert str(found).endswith(f" because: because of {cause}. Next step: mend {cause}.")


def test_refusal_goes_before_the_npu_and_the_npu_before_slowness() -> None:
    assert verdict([SLOW, OFF, BROKEN]).symptom == "refused"
    assert verdict([SLOW, OFF]).symptom == "not on the NPU"
    assert verdict([SLOW]).symptom == "slow"


def test_note_without_a_symptom_is_no_verdict() -> None:
    found = verdict([finding("threads"), finding("power")])
    assert found.symptom is None and str(found) == "Nothing is wrong that these checks find."


def test_good_report_has_the_measured_speed() -> None:
    fast = Finding("ok", "speed of m", "35 tokens/s", "", "m answers: CPU, 2 threads, 35 tokens/s")
    assert str(verdict([fast])) == "Nothing is wrong: m answers: CPU, 2 threads, 35 tokens/s."


def test_slow_answer_has_device_threads_and_speed() -> None:
    expected = "Slow because: CPU, 2 threads, 5 tokens/s. Next step: take another."
    assert str(verdict([SLOW])) == expected


def test_good_line_is_no_cause() -> None:
    assert verdict([finding("port", "ok"), BROKEN]).cause == "load"


def test_bad_line_without_a_cause_is_named() -> None:
    assert str(verdict([Finding("bad", "x", "it broke.")])) == "Refused because: x: it broke."
