"""Measures how long a warm dialog computes for a prompt and for a step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from gateway.bundles.genie.bundle import GenieBundle
from gateway.worker.frames import PassTimes
from gateway.worker.genie.library import GenieDialog, SentenceCode

_PROMPT_TOKENS, _TOKENS = 16, 4


def time_passes(dialog: GenieDialog, bundle: GenieBundle, clock: Callable[[], float]) -> PassTimes | None:
    """The pass of a short prompt, and the fastest of a few steps. None if the model ends its answer too early.

    Args:
        dialog: warm. It is empty afterwards.
        clock: seconds.
    """
    token = bundle.end_ids[0] if bundle.bos_id is None else bundle.bos_id
    prompt = [token] * max(1, min(_PROMPT_TOKENS, bundle.usable_context - _TOKENS))
    times = [clock()]

    def take(ids: list[int]) -> bool:
        times.append(clock())
        return True

    dialog.reset()
    dialog.set_max_tokens(_TOKENS)
    dialog.query(prompt, SentenceCode.COMPLETE, take)
    dialog.reset()
    wide_s, *steps = [after - before for before, after in pairwise(times)] or [0.0]
    return PassTimes(wide_s, min(steps)) if steps else None
