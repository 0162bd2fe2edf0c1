"""The targets of one model: which one gets the next request, and what is known of each.

A target that fails is down. In the background it gets requests for its models until it answers one, and then a short
request of the gateway; if that gets its answer, the target is up. If all targets are down, requests of users try them
all the same, because a probe may be late. Of those whose probe has failed they try only one, because each may cost
seconds. The lane's breaker decides when the model gets no request at all.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any

from gateway.engines.base import TargetStatus
from gateway.engines.upstream.hedge import OVERLOAD
from gateway.engines.upstream.policy import Candidate, Choice, choose
from gateway.engines.upstream.prefixes import PrefixIndex
from gateway.engines.upstream.refusals import CutOff, TooLarge, Unreachable, symptom
from gateway.engines.upstream.targets.target import Target
from gateway.errors import (
    ContextLengthExceeded,
    GatewayError,
    InvalidRequest,
    QueueFull,
    UpstreamFailed,
    UpstreamRefused,
)
from gateway.monitoring.throttle import Throttle

_log = logging.getLogger(__name__)

_OUT = ("broken", "silent")  # what a probe must not find
_BUSY_S = 1.0  # without `Retry-After`
_LAST = {"trial": 0, "busy": 1, "down": 2}


class Pool:
    """Args:
    name: of the model, for the log.
    targets: at least two.
    trial: sends a short request to a target and reads the answer. Raises GatewayError.
    """

    def __init__(self, name: str, targets: Sequence[Target], trial: Callable[[Target], Awaitable[None]]) -> None:
        self._name, self._targets, self._trial = name, targets, trial
        self._recovering: dict[Target, asyncio.Task[None]] = {}
        self._turns = itertools.count()
        self._prefixes = PrefixIndex(len(targets))
        self._tasks: set[asyncio.Task[None]] = set()
        self._throttle = Throttle()

    def start(self) -> None:
        """Ask each target whether it answers, in the background."""
        for target in self._targets:
            self._spawn(self._check(target))

    async def aclose(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def status(self) -> tuple[TargetStatus, ...]:
        return tuple(target.status for target in self._targets)

    @property
    def is_down(self) -> bool:
        """True if no target is known to work. Until then the failure of one does not count against the model."""
        return all(target.health.state == "down" for target in self._targets)

    def choose(self, blocks: Sequence[int], tried: Collection[Target]) -> tuple[Target, Choice] | None:
        """The target for the next attempt of a request; None if it has tried all of them.

        Args:
            blocks: of its prompt (prefixes.py).
        """
        for target in self._targets:
            target.wanted.set()
        has_waited = any(target.health.is_confirmed for target in tried)  # for one that does not even answer a probe
        left = [t for t in self._targets if t not in tried and not (has_waited and t.health.is_confirmed)]
        if not left:
            return None
        usable = [target for target in left if target.health.state == "up"] or [min(left, key=_last_resort)]
        return self._choose(blocks, usable, next(self._turns))

    def _choose(self, blocks: Sequence[int], usable: Sequence[Target], turn: int) -> tuple[Target, Choice]:
        known = self._prefixes.matches(blocks)
        choice = choose(
            [Candidate(target.running, target.server.weight) for target in usable],
            [known[target.number - 1] for target in usable],
            turn,
        )
        target = usable[choice.index]
        self._prefixes.note(target.number - 1, blocks)
        return target, choice

    def has_usable(self, *tried: Target) -> bool:
        """True if another target than these is up."""
        return any(target.health.state == "up" for target in self._targets if target not in tried)

    def second(self, blocks: Sequence[int], first: Target, tried: Collection[Target]) -> Target | None:
        """A target for a request that `first` has not begun to answer: one that is up and not overloaded, which is at
        most twice the load of `first` for its weight, unless that one is out. None: there is none."""
        most = math.inf if first.health.is_out else OVERLOAD * first.relative_load
        others = [target for target in self._targets if target not in (first, *tried) and target.health.state == "up"]
        free = [target for target in others if target.relative_load <= most]
        return self._choose(blocks, free, next(self._turns))[0] if free else None

    def failed(self, target: Target, error: GatewayError) -> None:
        """An attempt failed before its first content. What only this request can have caused is not counted yet."""
        match error:
            case QueueFull():
                target.health.busy(symptom(error), error.retry_after_s or _BUSY_S)
            case Unreachable():
                self.blame(target, error)

    def answered(self, target: Target, failures: Mapping[Target, GatewayError]) -> None:
        """The first content is there. So what other targets did to the same request was their fault."""
        self._up(target)
        for other, error in failures.items():
            self._log_failover(other, error, target)
            if isinstance(error, UpstreamFailed) and not isinstance(error, Unreachable | CutOff):
                self.blame(other, error)

    def blame(self, target: Target, error: GatewayError) -> None:
        """The target is the cause of this failure."""
        self._down(target, symptom(error), error.retry_after_s or 0.0)

    def _up(self, target: Target) -> None:
        if not target.health.answered():
            return
        _log.info("%s: %s answers again", self._name, target)
        task = self._recovering.pop(target, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _down(self, target: Target, problem: str, wait_s: float = 0.0) -> None:
        """`problem`: with the next step, if there is one, after the first sentence."""
        if not target.health.failed(_short(problem), wait_s):
            return
        if (suffix := self._throttle.suffix(f"{target.number} {problem}")) is not None:
            line = "%s: %s %s. It gets requests of users again when it answers one of the gateway%s"
            _log.warning(line, self._name, target, problem, suffix)
        if target not in self._recovering:
            self._recovering[target] = self._spawn(self._recover(target))

    def _log_failover(self, target: Target, error: GatewayError, other: Target) -> None:
        if (suffix := self._throttle.suffix(f"{target.number} {symptom(error)} {other.number}")) is not None:
            _log.info("%s: %s %s; %s answers the request%s", self._name, target, symptom(error), other, suffix)

    async def _check(self, target: Target) -> None:
        problem, level = await target.check()
        if level in _OUT:
            self._down(target, problem)
        elif problem:
            _log.warning("%s: %s %s", self._name, target, problem)

    async def _recover(self, target: Target) -> None:
        """Run until the target answers, or until a request of a user that tried it all the same succeeds."""
        while (state := target.health.state) in ("down", "trial"):
            await (self._list(target) if state == "down" else self._try(target))
        self._recovering.pop(target, None)

    async def _list(self, target: Target) -> None:
        await asyncio.sleep(max(0.0, target.health.until - asyncio.get_running_loop().time()))
        if target.health.state != "down":
            return
        problem, level = await target.check()
        if level in _OUT:
            target.health.probe_failed(_short(problem))
        else:
            target.health.listed()

    async def _try(self, target: Target) -> None:
        """Not for a model that no user needs: it may cost money, or look like an attack with wrong keys."""
        await target.wanted.wait()
        target.wanted.clear()
        if target.health.state != "trial":
            return
        try:
            await self._trial(target)
        except (QueueFull, InvalidRequest):
            self._up(target)  # it judges requests
        except GatewayError as error:
            if target.health.state == "trial":
                target.health.probe_failed(symptom(error))
        except Exception:
            _log.exception("%s: the trial of %s failed", self._name, target)
            target.health.probe_failed("failed")
        else:
            self._up(target)
            target.health.completed()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def moves_on(error: GatewayError) -> bool:
    """True if another target may answer a request that ended with this error before its first content."""
    return not isinstance(error, InvalidRequest) or isinstance(error, ContextLengthExceeded | TooLarge)


def clients_error(errors: Sequence[GatewayError]) -> GatewayError:
    """What the client gets if all targets failed: the first of the most useful kind.

    A target that is full, or that judged the request, is alive: then the failures of the others say nothing about the
    model, and its breaker must not count them. A full one comes first, because it may have the longest context.
    """
    full = sorted((e for e in errors if isinstance(e, QueueFull)), key=lambda error: error.retry_after_s or 0.0)
    judged = [error for error in errors if isinstance(error, InvalidRequest)]
    failed = [error for error in errors if not isinstance(error, UpstreamRefused)]
    return [*full, *judged, *failed, *errors][0]


def _short(problem: str) -> str:
    """Without the next step and the names that the server has."""
    return problem.partition(". ")[0].partition("; ")[0]


def _last_resort(target: Target) -> tuple[int, bool, float]:
    health = target.health
    return _LAST.get(health.state, 0), health.is_confirmed, health.until
