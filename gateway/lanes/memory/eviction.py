"""Which models are unloaded for another one, and when. manager.py has the rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gateway.bundles.disk import megabytes
from gateway.lanes.memory.claim import Claim

QUIET_S = 10.0
CACHE_IDLE_S = 600.0  # then the KV cache of finished requests is freed, before the weights
FREEING_S = 5.0  # a freed cache must be measured in this time; else models are unloaded


def victims(waiting: Sequence[Claim], held: Sequence[Claim], budget_bytes: float, now: float) -> list[Claim]:
    """The models to unload now.

    Args:
        waiting: in the order in which they get memory. Only the first of those that a client waits for decides.
        held: what is in memory.
        now: by the clock of the claims.
    """
    if _has_begun(held, now):
        return []
    is_left = any(each.is_leaving for each in held)  # after a long request: then only idle ones
    free = budget_bytes - sum(each.bytes for each in held)
    first = next((each for each in waiting if is_first(each)), None)
    for claim in [first] if first else [each for each in waiting if each.may_unload_others]:
        candidates = [each for each in held if _may_go(each, claim, now) and not (is_left and each.is_busy)]
        chosen = _chosen(size_of(claim, budget_bytes) - free, candidates)
        if chosen and all(each.stays_until <= now for each in chosen):  # no busy one in place of an idle one
            return chosen
    if free < 0:  # models have grown while they answered
        idle = [each for each in held if not each.is_busy and not each.pinned]
        return _chosen(-free, idle) or idle
    return []


def caches(waiting: Sequence[Claim], held: Sequence[Claim], budget_bytes: float, now: float) -> list[Claim]:
    """The idle models whose KV caches are freed now, in place of unloading any. Empty if that is not enough.

    Args: see `victims`. A pinned model keeps only its weights, if that is enough together with what can be unloaded.
    """
    if _has_begun(held, now):
        return []
    free = budget_bytes - sum(each.bytes for each in held)
    idle = [each for each in held if has_cache(each) and each.stays_until <= now]
    first = next((each for each in waiting if is_first(each)), None)
    for claim in [first] if first else [each for each in waiting if each.may_unload_others]:
        candidates = [each for each in idle if claim.is_wanted or each.last_used_at + QUIET_S <= now]
        missing = size_of(claim, budget_bytes) - free
        if chosen := _chosen(missing, candidates, lambda each: each.cache_bytes):
            return chosen
        missing -= sum(each.bytes for each in held if _may_go(each, claim, now))
        if chosen := _chosen(missing, [each for each in candidates if each.pinned], lambda each: each.cache_bytes):
            return chosen
    return _chosen(-free, idle, lambda each: each.cache_bytes)


def _chosen(
    missing: float, candidates: list[Claim], size: Callable[[Claim], int] = lambda each: each.bytes
) -> list[Claim]:
    """The least recently used ones that are enough together, and none that is not necessary. Empty if all are too few.

    If models with requests are necessary, only they: the others go when those have ended.
    """
    chosen: list[Claim] = []
    for each in sorted(candidates, key=eviction_order):
        if missing > 0:
            chosen.append(each)
            missing -= size(each)
    if missing > 0:
        return []
    for each in reversed(chosen[:-1]):
        if missing + size(each) <= 0:
            chosen.remove(each)
            missing += size(each)
    return [each for each in chosen if each.uses] or chosen


def refusal(claim: Claim, held: Sequence[Claim], budget_bytes: float) -> str:
    """Why the model can never be loaded with this budget; "": it can."""
    if (window := claim.need.window) and (reason := window.refusal(budget_bytes)):
        return reason
    step = "raise [memory] budget_mb"
    if claim.need.least_bytes > budget_bytes:
        all_have = f"all models together have {_text(budget_bytes)}"
        return f"needs {megabytes(claim.need.least_bytes)}, and {all_have}: {step}, or choose a smaller model"
    pinned = sum(_pinned_bytes(each) for each in held if each.pinned and each is not claim)
    if pinned and size_of(claim, budget_bytes) + pinned > budget_bytes:
        left = f"the pinned models leave {_text(max(0, budget_bytes - pinned))} of {_text(budget_bytes)}"
        return f"needs {megabytes(claim.need.bytes)}, and {left}: {step}, or remove `pinned` from a model"
    return ""


def size_of(claim: Claim, budget_bytes: float) -> int:
    """What the model gets. One that was larger than the budget only while it answered is loaded alone."""
    return int(min(claim.need.bytes, budget_bytes))


def is_first(claim: Claim) -> bool:
    return claim.may_unload_others and claim.is_wanted


def eviction_order(held: Claim) -> tuple[bool, float]:
    return held.is_busy, held.last_used_at


def expires_at(held: Claim) -> float | None:
    """When an idle model has been unused for its time. None: never, it is in use, or it is not loaded."""
    is_kept = held.keep_alive_s < 0 or held.pinned
    if is_kept or held.is_busy or held.is_leaving or held.loads:
        return None
    return held.last_used_at + held.keep_alive_s


def idle_steps(held: Claim) -> list[float]:
    """When an idle model loses its cache, and its memory. Empty while it is in use."""
    until = expires_at(held)
    cached = [held.last_used_at + CACHE_IDLE_S] if has_cache(held) else []
    return cached if until is None else [until, *cached]


def has_cache(held: Claim) -> bool:
    """True if the engine of an idle model can have something of finished requests."""
    freed_at = -math.inf if held.cache_freed_at is None else held.cache_freed_at
    return not held.is_busy and not held.is_leaving and freed_at < held.last_used_at


def _pinned_bytes(held: Claim) -> int:
    """What it keeps: without its cache, unless that was freed and it is no smaller."""
    can_shrink = held.is_busy or held.is_freeing or has_cache(held)
    return held.bytes - held.cache_bytes if can_shrink else held.bytes


def _has_begun(held: Sequence[Claim], now: float) -> bool:
    """True while an earlier decision gives memory back: one step, then look again."""
    return any(each.is_freeing or (each.is_leaving and not _lasts(each, now)) for each in held)


def _lasts(leaving: Claim, now: float) -> bool:
    """True if its requests end late: others do not wait for it. It is expected, or none has ended for that time."""
    return bool(leaving.uses) and (leaving.left_s() > QUIET_S or now >= leaving.last_used_at + QUIET_S)


def _may_go(held: Claim, claim: Claim, now: float) -> bool:
    if held.pinned or held.ready_at is None:
        return False
    return claim.is_wanted or not (held.uses or now < held.last_used_at + QUIET_S)


def _text(size: float) -> str:
    return megabytes(int(size))
