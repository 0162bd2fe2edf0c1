"""The table [breaker]. A model can have one of the same keys."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from gateway.config.tables.scalars import Count, Millis, Seconds, Share


class BreakerConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The circuit breaker. A request is slow if its device time exceeds its budget:

        latency_ms + prompt_token_ms * (prompt tokens computed) + token_ms * (tokens generated after the first)

    If none of the three keys is set, the gateway measures them at each start of the model, and the greeting shows them.
    It cannot measure another server: then no answer of an upstream model is slow, and only its failures count.
    If one is set, the default of `latency_ms` is 1000 and that of the others 0.
    """

    enabled: bool = True  # false: never refuse a request because others were slow
    latency_ms: Annotated[float, Meta(gt=0, le=1e9)] | None = None  # part of the budget for every request
    prompt_token_ms: Millis | None = None  # part of the budget for each prompt token that is not in the cache
    token_ms: Millis | None = None  # part of the budget for each generated token after the first
    window: Count = 10  # number of recent requests that are judged
    min_calls: Count = 5  # the breaker opens only after this number of judged requests
    rate: Share = 0.5  # it opens if at least this share of them was slow or failed
    open_s: Seconds = 10.0  # time that it refuses requests before the first probe
    probes: Count = 2  # number of good answers in a row that close it
    probe_itself: bool = True  # the gateway makes the probes; false: the next requests of users are the probes

    @property
    def has_budget(self) -> bool:
        return (self.latency_ms, self.prompt_token_ms, self.token_ms) != (None, None, None)
