"""The chip from what is compiled for it, on the emulator."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.errors import ConfigError
from gateway.qnn import detect
from gateway.qnn.chips import CHIPS, Chip, chip_named
from gateway.qnn.device import NpuDevice
from gateway.qnn.probe import probe_chip


@pytest.mark.parametrize("chip", [chip_named("x-elite"), chip_named("x2-elite")], ids=lambda chip: str(chip.name))
def test_compiled_network_states_its_chip(npu: NpuDevice, chip: Chip) -> None:
    assert probe_chip(replace(npu, soc=chip.soc_models[0])) == chip


def test_npu_that_is_no_laptops_is_no_chip(npu: NpuDevice) -> None:
    assert probe_chip(replace(npu, soc=57)) is None  # a phone, v75


def test_npu_that_refuses_the_network_is_no_chip(npu: NpuDevice) -> None:
    assert probe_chip(replace(npu, soc=9999)) is None


def test_npu_without_a_number_is_probed(npu: NpuDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator without a number compiles for v68, which is no laptop's."""
    monkeypatch.setattr(detect, "try_detect_npu", lambda *, emulated: replace(npu, kind="npu", soc=None))
    assert detect.chip_here() is None
    assert 68 not in {chip.architecture for chip in CHIPS}
    with pytest.raises(ConfigError, match=r"is not known\. Name it: --chip x-elite, x-plus, x2-elite"):
        detect.chip_for_downloads()


def test_machine_without_npu_downloads_for_x_elite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "try_detect_npu", lambda *, emulated: None)
    assert detect.chip_here() is None
    assert detect.chip_for_downloads() == chip_named("x-elite")
