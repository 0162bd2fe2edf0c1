"""A clock that only the test advances."""

from __future__ import annotations


class ManualClock:
    """Pass it as `clock`, so that no time limit depends on the speed of the machine.

    clock = ManualClock()
    engine = LocalEngine("m", model, folder, clock=clock)
    clock.now += 60.0
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
