"""The limits of each API key: what a request takes when it begins, and gives back at its end.

1. A request takes its prompt, estimated from its text, and what its answer can get: `max_tokens` of each choice, up to
   the context. An answer that only the context limits takes OPEN_ANSWER tokens; more is charged at its end.
2. At its end, the tokens count that the model has read and written. A request that no model has begun with counts
   nothing: it was refused, failed or cancelled before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.config.limits import ALL_MODELS, limits_of
from gateway.config.tables import KeyLimits, LimitsConfig
from gateway.generation import Generation
from gateway.lanes.limits.counters import Counters, MemoryCounters, Quota
from gateway.lanes.limits.estimate import Need, need_of
from gateway.lanes.limits.refusal import limit_reached
from gateway.monitoring.observers import AnswerRecord

_LONGEST_DEBT_MIN = 60  # minutes: another server can report any number of tokens


class Lease:
    """What one request has taken from the limits of its key, until `end`."""

    def __init__(self, counters: Counters, key: str, quota: Quota, needs: Iterable[Need]) -> None:
        self._counters, self._key, self._quota = counters, key, quota
        self._open = deque(needs)  # of the generations that have not ended, in their order
        self._unused = sum(need.total for need in self._open)
        self._has_begun = False
        self.is_over = False

    @property
    def is_complete(self) -> bool:
        """True if each generation of the request has ended."""
        return not self._open

    def add(self, record: AnswerRecord) -> None:
        """Count what the next generation has used."""
        need = self._open.popleft() if self._open else Need()
        if has_begun(record):
            self._has_begun = True
            # another server reports the prompt of an answer only at its end
            self._unused -= (record.prompt_tokens or need.prompt) + record.completion_tokens

    def end(self) -> None:
        """Give back what was not used. May be called again."""
        if not self.is_over:
            self.is_over = True
            unused = max(self._unused, -_LONGEST_DEBT_MIN * (self._quota.tokens or 0))
            self._counters.give_back(self._key, self._quota, requests=int(not self._has_begun), tokens=unused)


class KeyUse(Struct, frozen=True, kw_only=True):
    """What one API key uses of its limits now. The names are those of [limits]; None: no limit."""

    key: str  # its name; "": all requests together, of a gateway without keys
    requests: float
    requests_per_minute: int | None
    tokens: float
    tokens_per_minute: int | None
    running: int
    concurrent_requests: int | None


class Limits:
    """The limits of all API keys, by their names. The name is "" if the gateway has no keys.

    Args:
        counters: what the keys have used; None: this gateway counts alone.
    """

    def __init__(self, config: LimitsConfig, counters: Counters | None = None) -> None:
        self.counters = MemoryCounters() if counters is None else counters
        self._leases: dict[str, Lease] = {}  # by the id of the request
        self._shared: Mapping[str, KeyLimits] = {}
        self.apply(config)

    def apply(self, config: LimitsConfig) -> None:
        """Let another configuration count for the next requests. What was used stays."""
        self._config = config
        self._merged = replace(config, keys={**self._shared, **config.keys})
        self.are_none = replace(self._merged, keys={}) == LimitsConfig() and not any(
            limits != KeyLimits() for limits in self._merged.keys.values()
        )
        self._known: dict[str, tuple[Quota | None, frozenset[str] | None]] = {}

    def share(self, keys: Mapping[str, KeyLimits]) -> None:
        """Let the limits of other keys count, those of the database. A table of the configuration replaces one."""
        self._shared = keys
        self.apply(self._config)

    def quota(self, key: str) -> Quota | None:
        """The limits of the key; None: it has none."""
        return None if self.are_none else self._of(key)[0]

    def models(self, key: str) -> frozenset[str] | None:
        """The models that the key may use; None: all."""
        return None if self.are_none else self._of(key)[1]

    async def begin(self, key: str, generations: Sequence[Generation], context_length: int) -> Lease | None:
        """Take what one request needs. End the lease. None: the key has no limits.

        Args:
            generations: of one request, with the same id.
            context_length: of the model; 0: unknown.

        Raises:
            LimitReached: nothing was taken.
        """
        quota = self.quota(key)
        if quota is None:
            return None
        needs = [need_of(generation, context_length) for generation in generations]
        refusal = await self.counters.take(key, quota, sum(need.total for need in needs))
        if refusal is not None:
            raise limit_reached(key, quota, refusal, needs, requested=generations[0].model)
        lease = self._leases[generations[0].id] = Lease(self.counters, key, quota, needs)
        return lease

    def ended(self, record: AnswerRecord) -> None:
        """An observer: count what a request has used."""
        if lease := self._leases.get(record.id):
            lease.add(record)

    def is_complete(self, id: str) -> bool:
        """True if each generation of the request with this id has ended."""
        return id in self._leases and self._leases[id].is_complete

    def end(self, id: str) -> None:
        """The request with this id has ended: give back what it did not use. May be called again."""
        if lease := self._leases.pop(id, None):
            lease.end()

    def used(self, keys: Iterable[str]) -> Iterator[KeyUse]:
        """What each of `keys` uses that has limits."""
        for key in keys:
            if quota := self.quota(key):
                levels = self.counters.levels(key, quota)
                yield KeyUse(
                    key=key,
                    requests=round(levels.requests, 1),
                    requests_per_minute=quota.requests,
                    tokens=round(levels.tokens, 1),
                    tokens_per_minute=quota.tokens,
                    running=levels.running,
                    concurrent_requests=quota.concurrent,
                )

    def _of(self, key: str) -> tuple[Quota | None, frozenset[str] | None]:
        if key not in self._known:
            limits = limits_of(self._merged, key)
            models = limits.models or ()
            self._known[key] = _quota_of(limits), None if ALL_MODELS in models else frozenset(models)
        return self._known[key]


def _quota_of(limits: KeyLimits) -> Quota | None:
    """None: all are unlimited."""
    own = (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_requests)
    requests, tokens, concurrent = (each if isinstance(each, int) else None for each in own)
    quota = Quota(requests=requests, tokens=tokens, concurrent=concurrent)
    return None if quota == Quota() else quota


def has_begun(record: AnswerRecord) -> bool:
    """True if a model has worked for the request."""
    return record.status == 200 or record.device_ms > 0 or record.completion_tokens > 0
