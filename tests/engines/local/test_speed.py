"""The published speed of a model, only where it can be compared with the measured one."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.bundles.origin import Origin
from gateway.engines.local.speed import published_speed
from gateway.worker.frames import Device
from tests.support.workers import READY

ORIGIN = Origin(source="m", url="", chip="x-elite", published_tokens_per_s=21.2)


@pytest.mark.parametrize(
    ("origin", "device", "soc", "expected"),
    [
        (ORIGIN, "npu", 60, 21.2),
        (replace(ORIGIN, chip="x-plus"), "npu", 60, 21.2),  # one number for both chips
        (ORIGIN, "npu", None, 21.2),  # the machine does not report its chip
        (ORIGIN, "npu", 88, None),
        (replace(ORIGIN, chip="x2-elite"), "npu", 87, 21.2),
        (replace(ORIGIN, chip="from a later version"), "npu", 60, None),
        (replace(ORIGIN, published_tokens_per_s=None), "npu", 60, None),
        (ORIGIN, "emulated", 60, None),
        (ORIGIN, "cpu", None, None),
        (None, "npu", 60, None),
    ],
)
def test_published_speed_is_of_this_chip(
    origin: Origin | None, device: Device, soc: int | None, expected: float | None
) -> None:
    assert published_speed(origin, replace(READY, device=device, soc=soc)) == expected
