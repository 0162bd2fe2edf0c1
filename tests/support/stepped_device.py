"""A device for ScriptedEngine whose calls take no real time, and end only when the test allows it."""

from __future__ import annotations

import asyncio
import math
import time


class SteppedDevice:
    """Pass `clock` and `sleep` to a ScriptedEngine.

        device = SteppedDevice()
        engine = ScriptedEngine("m", model, clock=device.clock, sleep=device.sleep)
        device.allowed = device.calls + 5  # the sixth call from now blocks
        device.allowed = math.inf          # no call blocks

    The event loop of the server runs the calls. The thread of the test sets `allowed` and reads `calls`.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.allowed = math.inf
        self._skipped_s = 0.0

    def clock(self) -> float:
        return time.monotonic() + self._skipped_s

    async def sleep(self, seconds: float) -> None:
        self.calls += 1
        call = self.calls
        while call > self.allowed:  # noqa: ASYNC110 (another thread sets it)
            await asyncio.sleep(0.005)
        self._skipped_s += seconds
