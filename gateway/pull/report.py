"""How the steps of a pull show their progress."""

from __future__ import annotations

from collections.abc import Callable

#: report(stage, done, total): bytes of `stage` that are done, and all of them. 0 as `total`: unknown.
Report = Callable[[str, int, int], None]
