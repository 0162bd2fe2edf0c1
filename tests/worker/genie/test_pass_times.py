"""The passes of a warm dialog, timed by a clock that a test advances, on the emulated NPU."""

from __future__ import annotations

from contextlib import closing
from itertools import count
from pathlib import Path

from gateway.bundles.genie.bundle import load_genie_bundle
from gateway.worker.frames import PassTimes
from gateway.worker.genie.library import GenieDialog, SentenceCode
from gateway.worker.genie.pass_times import time_passes
from tests.support.child_call import call_in_child


def timed(config: Path) -> tuple[PassTimes | None, list[int]]:
    """The times of a dialog, by a clock that counts the looks at it, and the dialog's next answer."""
    bundle, looks = load_genie_bundle(config), count()
    with closing(GenieDialog(bundle.config)) as dialog:
        passes = time_passes(dialog, bundle, lambda: float(next(looks) ** 2))
        answer: list[int] = []
        dialog.set_max_tokens(4)
        dialog.query([1, 20, 30], SentenceCode.COMPLETE, lambda ids: answer.extend(ids) or True)
    return passes, answer


def test_first_token_is_a_wide_pass_and_later_ones_are_steps(genie_config: Path) -> None:
    passes, answer = call_in_child(timed, genie_config)
    assert passes == PassTimes(1.0, 3.0), "1 - 0, and the least of 4 - 1, 9 - 4 and 16 - 9"
    assert answer
