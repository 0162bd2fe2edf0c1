from __future__ import annotations

import pytest

from gateway.commands.doctor.power import Power, power_findings, read_power


@pytest.mark.parametrize(
    ("power", "level", "because"),
    [
        (Power(plugged=True, percent=80, mode="best performance"), "ok", ""),
        (Power(plugged=True, percent=80, mode="better battery"), "note", "the power mode is 'better battery'"),
        (Power(plugged=False, percent=20, mode="battery saver"), "note", "the power mode is 'battery saver'"),
        (Power(plugged=False, percent=20, mode="balanced"), "note", "the laptop runs on battery"),
        (Power(plugged=None, mode="low-power"), "note", "the power mode is 'low-power'"),
    ],
)
def test_power_that_makes_answers_slow_is_found(power: Power, level: str, because: str) -> None:
    [found] = power_findings(power)
    assert (found.level, found.because, found.cause) == (level, because, "power" if because else "")


def test_machine_without_battery_has_no_line() -> None:
    assert list(power_findings(Power())) == []


def test_power_of_this_machine_can_be_read() -> None:
    assert isinstance(read_power(), Power)
