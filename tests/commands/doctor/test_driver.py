from __future__ import annotations

import sys

import pytest

from gateway.commands.doctor import driver
from gateway.commands.doctor.driver import Driver, driver_findings, installed_drivers

HEXAGON = Driver(
    name="Snapdragon(R) X Elite - X1E80100 - Qualcomm(R) Hexagon(TM) NPU",
    version="30.0.220.3000",
    date="3-24-2025",
    vendor="Qualcomm Technologies, Inc.",
)
INTEL = Driver(name="Intel(R) AI Boost", version="32.0.100.3104", date="10-25-2024", vendor="Intel Corporation")


def test_driver_of_the_npu_is_shown_with_its_version() -> None:
    [found] = driver_findings([HEXAGON], True)
    assert found.level == "ok" and "30.0.220.3000 of 3-24-2025" in found.detail


@pytest.mark.parametrize("drivers", [[], [INTEL]])
def test_arm_machine_without_driver_is_bad(drivers: list[Driver]) -> None:
    [found] = driver_findings(drivers, True)
    assert (found.level, found.cause, found.symptom) == ("bad", "driver", "not on the NPU")
    assert "Windows Update" in found.step and ("Intel" in found.detail) == bool(drivers)


def test_x64_machine_without_driver_is_a_note() -> None:
    [found] = driver_findings([INTEL], False)
    assert found.level == "note" and not found.cause


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has a registry")
def test_other_systems_have_no_registry() -> None:
    assert installed_drivers() is None and list(driver_findings(None, True)) == []


def test_crash_of_the_driver_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.qnn.detect.__name__", "tests.commands.crash")
    [found] = driver.npu(True)
    assert (found.level, found.cause, found.symptom) == ("bad", "driver", "not on the NPU")
    assert "driver crashed" in found.detail


def test_missing_npu_is_bad_only_where_one_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.qnn.detect.detect_npu", lambda emulated: None)
    [expected], [other] = driver.npu(True), driver.npu(False)
    assert (expected.level, expected.cause, other.level) == ("bad", "driver", "note")
