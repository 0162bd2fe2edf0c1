"""Chips by number and Hexagon version."""

from __future__ import annotations

import pytest

from gateway.errors import ConfigError
from gateway.qnn.chips import CHIPS, Chip, chip_named, chip_of
from gateway.qnn.device import NpuDevice


def test_each_chip_has_its_name() -> None:
    assert [chip_named(chip.name) for chip in CHIPS] == list(CHIPS)


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: str(chip.name))
def test_each_number_has_the_hexagon_version_of_its_chip(chip: Chip) -> None:
    for soc in chip.soc_models:
        assert NpuDevice(kind="npu", name="", soc=soc).architecture == chip.architecture


def test_unknown_name_is_an_error_with_all_names_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'x-elit'.*x-elite, x-plus, x2-elite; did you mean 'x-elite'\?"):
        chip_named("x-elit")
    with pytest.raises(ConfigError, match=r"The chips are x-elite, x-plus, x2-elite\.$"):
        chip_named("8 Gen 3")


@pytest.mark.parametrize(
    ("soc", "architecture", "name"),
    [
        (60, 73, "x-elite"),
        (60, None, "x-elite"),
        (None, 73, "x-elite"),
        (88, 81, "x2-elite"),
        (87, None, "x2-elite"),
        (None, 81, "x2-elite"),
        (57, 75, None),  # phones
        (43, 73, None),
        (None, 79, None),
        (60, 81, None),  # contradiction
        (None, None, None),
    ],
)
def test_chip_is_found_by_number_and_version(soc: int | None, architecture: int | None, name: str | None) -> None:
    found = chip_of(soc, architecture)
    assert (found and found.name) == name


def test_x_plus_takes_what_was_made_for_x_elite() -> None:
    own, other = chip_named("x-plus").ai_hub_names
    assert own.endswith("x-plus-8-core")
    assert other == chip_named("x-elite").ai_hub_names[0]
