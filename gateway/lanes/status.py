"""The state of a lane, as others see it."""

from __future__ import annotations

import logging

from msgspec import Struct

from gateway.engines.base import EngineStatus
from gateway.lanes.breaker import Breaker, BreakerStatus, State

_log = logging.getLogger(__name__)


class ModelMemory(Struct, frozen=True, kw_only=True):
    """The memory of a model. Bytes."""

    need: int = 0  # to load it: measured at its last load, else an estimate
    is_measured: bool = False
    load_s: float | None = None  # expected seconds of a load; None: unknown
    keep_alive_s: float = -1.0  # without a request, until it is unloaded; negative: for ever
    expires_s: float | None = None  # seconds until it is unloaded; None: never, it is in use, or it is not loaded
    is_pinned: bool = False
    budget: int | None = None  # of all models together; None: no limit


class LaneStatus(Struct, frozen=True, kw_only=True):
    """What `/readyz` and the page show of a lane."""

    model: str
    engine: EngineStatus
    breaker: BreakerStatus
    running: int
    waiting: int
    expected_wait_s: float  # until a request of a client that comes now gets a slot
    cpu_nodes: int = 0  # of the model's graphs: on an NPU, these run on the CPU
    tokens_per_s: float | None = None  # in recent answers, of device time, for one answer; None: not measured yet
    speed: str = ""  # the same for a person, with the published speed: "19.7 tokens/s, 93 % of 21.2"
    background: str = ""  # what is built for the model while it answers: "a bundle for the NPU: 3 of 8 pieces"
    loads_on_demand: bool = False  # the model is unloaded; a request waits until it is loaded
    memory: ModelMemory = ModelMemory()

    @property
    def is_ready(self) -> bool:
        """True if a request is accepted now."""
        is_there = (self.engine.state == "ready" and not self.engine.is_down) or self.loads_on_demand
        return is_there and self.breaker.state == "closed"


def log_breaker(name: str, breaker: Breaker, state: State, fallback: str | None) -> None:
    """The line of a change of the state of a model's breaker."""
    match state:
        case "open":
            then = f"'{fallback}' answers" if fallback else "requests are refused"
            line = "%s %s: %s for %.0f s (breaker open: %s)"
            _log.warning(line, name, breaker.symptom, then, breaker.config.open_s, breaker.reason)
        case "half_open":
            _log.info("%s: breaker half-open: %d good probes close it", name, breaker.config.probes)
        case "closed":
            _log.info("%s: breaker closed", name)
