"""One model's part of the memory budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from gateway.config.tables import ModelConfig, ResidentModel
from gateway.lanes.memory.needs import Need
from gateway.lanes.memory.uses import Uses

_LONGEST_STAY_S = 10.0
_NEXT_REQUEST_S = 1.0


class Claim:
    """The memory of one lane's engine. The manager grants it before the engine is loaded.

    Args:
        name: of the model.
        need: what is known of its size.
        uses: the requests that need the engine.
        left_s: expected seconds until the requests that are here have ended.
        free_cache: drops what the engine keeps of finished requests.
    """

    def __init__(
        self,
        name: str,
        need: Need,
        uses: Uses,
        *,
        left_s: Callable[[], float] = lambda: 0.0,
        free_cache: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self.need = need
        self.uses = uses
        self.loads = Uses()  # explicit requests to load it, without a prompt
        self.keep_alive_s = -1.0  # the model is unloaded after this time without a request; negative: never
        self.pinned = False  # it is never unloaded for another model
        self.is_on_demand = False  # the model is not loaded with the gateway
        self.left_s = left_s
        self.free_cache = free_cache
        self.state: Literal["none", "waiting", "held"] = "none"
        self.granted: asyncio.Future[None] | None = None  # while it waits
        self.bytes = 0  # of the budget, while it is held
        self.may_unload_others = False  # to be granted
        self.is_leaving = False  # its engine is being closed
        self.ready_at: float | None = None  # when the engine was ready; None: it is not loaded
        self.began_at = 0.0  # when it was granted
        self.cache_freed_at: float | None = None
        self.is_freeing = False  # its cache was freed, and it was not measured since then

    def configure(self, model: ModelConfig) -> bool:
        """Apply the keys of the model's table. True: they no longer say that its first request loads it."""
        was_on_demand = self.is_on_demand
        if isinstance(model, ResidentModel):
            self.keep_alive_s, self.pinned = model.keep_alive, model.pinned
            self.is_on_demand = model.load == "demand"
        self.uses.on_change()
        return was_on_demand and not self.is_on_demand

    @property
    def is_busy(self) -> bool:
        """True if requests need the engine, or if it is not ready."""
        return bool(self.uses) or self.ready_at is None

    @property
    def is_wanted(self) -> bool:
        """True if a client waits for the load."""
        return bool(self.uses) or bool(self.loads)

    @property
    def cache_bytes(self) -> int:
        """What it has grown since its load. Without its cache it gives that back."""
        return max(0, self.bytes - self.need.least_bytes)

    @property
    def last_used_at(self) -> float:
        return max(self.uses.last_at, self.ready_at or 0.0)

    @property
    def stays_until(self) -> float:
        """It is not unloaded for another model before. So loads take at most half of the time, if clients send at once.

        An idle one stays for a second, in which a program sends its next request.
        """
        load_s = self.need.load_s or 0.0
        begin = self.began_at + load_s if self.ready_at is None else self.ready_at
        until = begin + min(load_s, _LONGEST_STAY_S)
        return until if self.is_busy else min(until, self.last_used_at + _NEXT_REQUEST_S)

    def leaves_s(self, now: float) -> float:
        """Expected seconds until it can be unloaded."""
        return max(self.stays_until - now, self.left_s(), 0.0)
