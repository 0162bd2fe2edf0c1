"""Decides which models are in memory. Nothing else does.

All models together have one budget. A load begins when the manager has granted the memory for it:

1. Waiting loads go in order: first those that a client waits for, in the order in which they came; no later one takes
   the memory of an earlier one. Then those that were refused because the load takes too long for their client.
2. If the memory is not free, the KV caches of idle models are freed, if that is enough. If it is not, the least
   recently used models without requests are unloaded, if that is enough. If it is not, models with requests are
   replaced too: they finish what they have accepted and are unloaded then. Their new requests wait for a new load. So
   two models that do not fit together take turns.
   While one that is being unloaded has requests that last over 10 s, idle models are unloaded too.
3. A model stays for as long as its load took, at most 10 s, before another model can replace it, but only for a second
   after its last request. So two programs that use two models do not spend all of the time with loads.
4. Nothing is unloaded before it is known that the new model will then fit. Pinned models stay.
5. A load that no client waits for unloads only models that had no request for 10 s. A load at the start, and a load
   after a failure that no client wants, unloads nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial

from msgspec.structs import replace

from gateway.config.tables import ModelConfig
from gateway.errors import ModelTooLarge
from gateway.lanes.memory.claim import Claim
from gateway.lanes.memory.eviction import (
    CACHE_IDLE_S,
    FREEING_S,
    QUIET_S,
    caches,
    eviction_order,
    expires_at,
    has_cache,
    idle_steps,
    is_first,
    refusal,
    size_of,
    victims,
)
from gateway.lanes.memory.needs import Need, Needs
from gateway.lanes.memory.uses import Uses
from gateway.lanes.status import ModelMemory

_FREED_S = 1.0  # an earlier measurement can be of the time before the cache was freed
_MIN_PAUSE_S = 0.001
_FAULT_PAUSE_S = 1.0

_log = logging.getLogger(__name__)


class MemoryManager:
    """Args:
    budget_bytes: for all models together.
    needs: keeps what is measured; None: it is not kept.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        budget_bytes: float = math.inf,
        needs: Needs | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.needs = needs or Needs()
        self._clock = clock
        self.held: list[Claim] = []  # what is in memory, or is loaded into it
        self._waiting: list[Claim] = []
        self._changed = asyncio.Event()
        self._decides_at = math.inf  # the time of the next step without an event
        self.used = asyncio.Event()  # the memory of a model can have changed
        self._keeping: set[asyncio.Task[None]] = set()

    # --- for the lanes

    def claim(
        self,
        name: str,
        model: ModelConfig,
        uses: Uses,
        left_s: Callable[[], float],
        free_cache: Callable[[], None],
    ) -> Claim:
        """The claim of a lane, not granted. See Claim. It reads files of the bundle."""
        claim = Claim(name, self.needs.of(model, self.budget_bytes), uses, left_s=left_s, free_cache=free_cache)
        claim.configure(model)
        claim.loads.on_change = self._changed.set  # after it: a lane can be made in a thread
        uses.on_change = partial(self._used, claim)
        return claim

    def _used(self, claim: Claim) -> None:
        self.used.set()
        if self._waiting or self._free_bytes < 0 or self._decides_at > min(idle_steps(claim), default=math.inf):
            self._changed.set()

    def status(self, claim: Claim) -> ModelMemory:
        until = expires_at(claim)
        return ModelMemory(
            need=claim.need.bytes,
            is_measured=claim.need.is_measured,
            load_s=claim.need.load_s,
            keep_alive_s=claim.keep_alive_s,
            expires_s=None if until is None else max(0.0, until - self._clock()),
            is_pinned=claim.pinned,
            budget=None if math.isinf(self.budget_bytes) else int(self.budget_bytes),
        )

    # --- for the loaders

    def check(self, claim: Claim) -> None:
        """Raises ModelTooLarge if the model can never be loaded with this budget."""
        if reason := refusal(claim, self.held, self.budget_bytes):
            raise ModelTooLarge(f"{claim.name} {reason}.")

    async def acquire(self, claim: Claim, *, may_unload_others: bool) -> None:
        """Wait for the memory of an engine. Raises ModelTooLarge. `release` gives it back."""
        self.check(claim)
        if claim.state == "held":  # its worker was lost and is started again
            return
        claim.state, claim.may_unload_others = "waiting", may_unload_others
        claim.granted = asyncio.get_running_loop().create_future()
        self._waiting.append(claim)
        self._changed.set()
        self._grant()
        try:
            await claim.granted
        except BaseException:
            self.release(claim)
            raise

    def is_free_for(self, claim: Claim) -> bool:
        """True if the model can be loaded now: nothing has to be unloaded for it, and no client is before it."""
        is_behind = any(is_first(each) for each in self._waiting)
        return claim.state == "held" or self._fits(claim, is_behind=is_behind)

    def ready(self, claim: Claim, peak_bytes: int, load_s: float) -> None:
        """The engine is loaded. `peak_bytes`: what the load took; 0: unknown."""
        claim.ready_at, claim.cache_freed_at, claim.is_freeing = self._clock(), None, False
        if peak_bytes:
            need, reserved = claim.need, claim.bytes if claim.need.is_measured else 0
            claim.need = replace(need, bytes=peak_bytes, least_bytes=peak_bytes, load_s=load_s, is_measured=True)
            claim.bytes = max(peak_bytes, reserved)
            self._keep(claim.need)
        self.used.set()
        self._changed.set()

    def measured(self, claim: Claim, size: int) -> None:
        """The engine has `size` bytes in memory now. Without its cache it gives back what it had grown."""
        if claim.state != "held":
            return
        if size > claim.need.bytes:
            claim.need = replace(claim.need, bytes=size)
        if claim.cache_freed_at is not None and self._clock() >= claim.cache_freed_at + _FREED_S:
            claim.is_freeing = False
        claim.bytes = max(size, claim.need.least_bytes if claim.cache_freed_at else claim.bytes)
        self._grant()
        self._changed.set()

    def release(self, claim: Claim) -> None:
        """The engine is closed, or was not loaded."""
        if claim.ready_at is not None and claim.need.is_measured:
            self._keep(claim.need)
        for claims in (self.held, self._waiting):
            with suppress(ValueError):
                claims.remove(claim)
        claim.state, claim.bytes, claim.ready_at, claim.is_leaving = "none", 0, None, False
        self._changed.set()
        self._grant()

    def set_budget(self, size: float) -> None:
        """Another budget, in bytes. If it is smaller than what is loaded, idle models are unloaded."""
        self.budget_bytes = size
        self._changed.set()

    def wait_s(self, claim: Claim) -> float:
        """Expected seconds until the memory of a load that begins now is free."""
        if claim.state == "held":
            return 0.0
        now, time_s, free = self._clock(), 0.0, self._free_bytes
        others = sorted((held for held in self.held if not held.pinned), key=eviction_order)
        leaves = [(held.leaves_s(now), held.bytes) for held in others]
        ahead = [each for each in self._in_order() if each.is_wanted and each is not claim]
        for each in [*ahead, claim]:
            while free < size_of(each, self.budget_bytes) and leaves:
                leaves_s, size = leaves.pop(0)
                time_s, free = max(time_s, leaves_s), free + size
            free -= size_of(each, self.budget_bytes)
            if each is not claim:
                load_s = each.need.load_s or 0.0
                leaves.append((time_s + 2 * load_s, size_of(each, self.budget_bytes)))
        return time_s

    # --- decisions

    async def run(self, unload: Callable[[Claim], Awaitable[None]]) -> None:
        """Unload models for others, and idle ones, until it is cancelled.

        Args:
            unload: begins to unload a model. It clears `is_leaving` if it cannot.
        """
        while True:
            try:
                await self._step(unload)
            except Exception as error:
                _log.error("the memory manager failed; it tries again", exc_info=error)
                await asyncio.sleep(_FAULT_PAUSE_S)

    async def _step(self, unload: Callable[[Claim], Awaitable[None]]) -> None:
        """Decide once, then wait for the next decision."""
        self._changed.clear()
        self._decides_at = math.inf
        for claim in self.held:
            if claim.is_freeing and (claim.cache_freed_at or 0.0) + FREEING_S <= self._clock():
                claim.is_freeing = False  # no measurement says what it has given back
        self._grant()
        for claim in caches(self._in_order(), self.held, self.budget_bytes, self._clock()):
            self._free_cache(claim)
        for claim in [*victims(self._in_order(), self.held, self.budget_bytes, self._clock()), *self._expired()]:
            if claim.state == "held" and not claim.is_leaving:
                claim.is_leaving = True
                await unload(claim)
        self._free_caches()
        pause_s = self._pause_s()
        self._decides_at = math.inf if pause_s is None else self._clock() + pause_s
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._changed.wait()

    def _grant(self) -> None:
        """Grant free memory, in order."""
        is_behind = False  # an earlier one that a client waits for
        for claim in self._in_order():
            assert claim.granted is not None
            if claim.granted.done():
                continue
            if reason := refusal(claim, self.held, self.budget_bytes):
                claim.granted.set_exception(ModelTooLarge(f"{claim.name} {reason}."))
            elif self._fits(claim, is_behind=is_behind):
                self._waiting.remove(claim)
                self.held.append(claim)
                claim.state, claim.bytes, claim.began_at = "held", size_of(claim, self.budget_bytes), self._clock()
                claim.granted.set_result(None)
            elif is_first(claim):
                is_behind = True

    def _fits(self, claim: Claim, *, is_behind: bool) -> bool:
        """True if the free memory is enough, and no earlier claim has it. A model that needs none always fits."""
        size = size_of(claim, self.budget_bytes)
        return not size or (not is_behind and size <= self._free_bytes)

    def _in_order(self) -> list[Claim]:
        """The waiting claims: those of waiting clients, then those that may unload others, then the rest."""
        return sorted(self._waiting, key=lambda claim: (not is_first(claim), not claim.may_unload_others))

    def _expired(self) -> Iterator[Claim]:
        now = self._clock()
        yield from [held for held in self.held if (until := expires_at(held)) is not None and until <= now]

    def _free_caches(self) -> None:
        """The first step of an idle model: it keeps its weights."""
        for held in self.held:
            if has_cache(held) and held.last_used_at + CACHE_IDLE_S <= self._clock():
                self._free_cache(held)

    def _free_cache(self, held: Claim) -> None:
        self.used.set()
        held.cache_freed_at, held.is_freeing = self._clock(), held.cache_bytes > 0
        held.free_cache()

    def _pause_s(self) -> float | None:
        """Until a decision can change without an event. None: it cannot."""
        times: list[float] = []
        for held in self.held:
            if self._waiting and (held.ready_at is not None or held.is_leaving):
                times += [held.stays_until, held.last_used_at + QUIET_S]
            times += idle_steps(held)
            if held.is_freeing and held.cache_freed_at is not None:
                times.append(held.cache_freed_at + FREEING_S)
        now = self._clock()
        later = [time - now for time in times if time > now]
        return max(_MIN_PAUSE_S, min(later)) if later else None

    @property
    def _free_bytes(self) -> float:
        return self.budget_bytes - sum(held.bytes for held in self.held)

    def _keep(self, need: Need) -> None:
        if self.needs.note(need):
            task = asyncio.create_task(asyncio.to_thread(self.needs.write))
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)
