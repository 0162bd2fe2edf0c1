"""What an engine writes about a running request: its device time, its tokens and the server that answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from msgspec import Struct, field

#: Why this server answers: the only target; it has the cache of the conversation; it has the fewest requests; the one
#: with the cache is overloaded; those before it failed; it began before the one that was tried first.
RouteReason = Literal["only", "affinity", "least-loaded", "spill", "failover", "hedge"]


class Route(Struct, frozen=True, kw_only=True):
    """Where a request went, and why. Clients see it: it has no key, no path and no user of a URL.

    local
    10.0.0.2:8000;reason=failover;attempts=2
    """

    target: str = ""  # "host:port" of another server, in printable ASCII; "": a model of this gateway
    reason: RouteReason = "only"
    attempts: int = 1  # servers that were tried, with the one that answers
    hedged: bool = False  # two servers were tried at the same time

    def text(self, fallback_cause: str = "") -> str:
        """The header `x-gateway-route`. `fallback_cause`: why the requested model does not answer."""
        parts = [self.target or "local"]
        parts += [f"reason={self.reason}", f"attempts={self.attempts}"] if self.target else []
        parts += ["hedged"] if self.hedged else []
        return ";".join(parts + ([f"fallback={fallback_cause}"] if fallback_cause else []))


class Meter(Struct, kw_only=True):
    """The device time and the tokens of one running request. The engine writes it, the lane reads it at any time.

    The circuit breaker judges by it while a device call still runs, so an engine updates it at every call.

    Args:
        clock: seconds, monotonic. All times here are times of this clock.
    """

    clock: Callable[[], float] = time.monotonic
    route: Route = Route()  # of an engine with several servers: the newest decision, before each attempt
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    device_s: float = 0.0  # in device calls that have ended
    shared_s: float = 0.0  # in device calls of all requests while this one waited for its first token
    prompt_s: float = 0.0  # the part of `device_s` up to the first token
    began_at: float | None = None  # when the device began with the request
    first_token_at: float | None = None  # when the first token was counted: the one clock for time to first token
    call_since: float | None = None  # start of the call that may work for this request; None: no call is running
    #: Seconds of the device's running call, 0 if none is running. None: the engine cannot see it.
    call_s: Callable[[], float] | None = None
    drafts: dict[str, tuple[int, int]] = field(default_factory=dict)  # source -> tokens of drafts, right ones of them

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that the device had to compute."""
        return self.prompt_tokens - self.cached_tokens

    def begin(self) -> None:
        """The device begins with the request."""
        self.began_at = self.clock()

    def call_started(self) -> None:
        self.call_since = self.clock()

    def call_cut(self) -> None:
        """The request ends during a call: the seconds until now count."""
        self.device_s = self.device_s_at(self.clock())
        self.call_since = None

    def call_ended(self) -> None:
        self.call_since = None

    def count_token(self) -> None:
        """Count one completion token; the first one sets `first_token_at` and `prompt_s`."""
        self.completion_tokens += 1
        if self.first_token_at is None:
            self.first_token_at, self.prompt_s = self.clock(), self.device_s

    def begin_again(self) -> None:
        """The answer broke, and its client has nothing of it: only that of another server counts. If there is none, the
        device time shows that a model has worked for the request."""
        self.completion_tokens, self.first_token_at = 0, None

    def drafted(self, source: str, tokens: int, right: int) -> None:
        """Count a draft that was verified."""
        before, right_before = self.drafts.get(source, (0, 0))
        self.drafts[source] = before + tokens, right_before + right

    def count_result(self) -> None:
        """The vectors or scores are there: an answer without tokens, whose device time is all of the prompt."""
        self.first_token_at, self.prompt_s = self.clock(), self.device_s

    def device_s_at(self, now: float) -> float:
        """Device seconds up to `now`, with the call that is running."""
        if self.call_since is None:
            return self.device_s
        since_s = now - self.call_since
        return self.device_s + (since_s if self.call_s is None else min(since_s, self.call_s()))
