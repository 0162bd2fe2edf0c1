"""A simulation of many NPUs behind a gateway: conversations, devices with prefix caches, faults, and a router.

The router calls the gateway's own `choose`, `PrefixIndex` and `Hedging`. A device has the published times of Llama 3.2
3B, our worker's slots and prefix cache, and shares its time equally between the requests that run, as our worker does:
the next call is for the request that has had the least. Only the end of a prefill and the end of an answer are events.
Every random number comes from the seed, and each conversation has its own, so all policies get the same ones.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from fleet.conversations import Conversation, conversation_s
from fleet.device import Attempt, Device, Request
from fleet.plan import Figures, Plan, quantile
from fleet.router import Route, Router
from gateway.engines.scripted.script import CHIPS
from gateway.engines.upstream.hedge import OVERLOAD


class Fleet:
    """One run. The figures are of the requests that came after `warm_s`."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.now, self.numbers = plan, 0.0, itertools.count()
        self.random = random.Random(plan.seed)
        self.events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self.ttfts: list[float] = []
        self.busy_before: list[float] = []
        self.prompt_tokens = self.cached_tokens = self.hedged = self.lost = 0
        chips = [CHIPS["x-elite"], CHIPS["x2-elite"]]
        self.devices = [Device(self, chips[i % 2], plan.batch) for i in range(plan.devices)]
        self.weights = [1.0 + i % 2 for i in range(plan.devices)]
        self.routers = [self._router(i) for i in range(plan.gateways)]
        self.conversations = itertools.count()
        self.rate = plan.load * plan.batch * sum(self.weights) / conversation_s(plan)  # conversations a second
        self._make_faults()
        self.arrivals = random.Random(plan.seed)
        self.after(0.0, self._arrive, None)
        self.after(plan.warm_s, self._begin, None)

    def run(self) -> Fleet:
        while self.events:
            self.now, _, happen, argument = heapq.heappop(self.events)
            if self.now > self.plan.seconds:
                break
            happen(argument)
        return self

    @property
    def figures(self) -> Figures:
        seconds = self.plan.seconds - self.plan.warm_s
        busy = [
            (device.busy_s - before) / seconds for device, before in zip(self.devices, self.busy_before, strict=True)
        ]
        self.ttfts.sort()
        return Figures(
            requests=len(self.ttfts),
            mean_s=sum(self.ttfts) / len(self.ttfts),
            p50_s=quantile(self.ttfts, 0.5),
            p99_s=quantile(self.ttfts, 0.99),
            p999_s=quantile(self.ttfts, 0.999),
            used=sum(busy) / len(busy),
            most_used=quantile(busy, 0.95),
            hits=self.cached_tokens / self.prompt_tokens,
            hedged=self.hedged / len(self.ttfts),
            lost=self.lost,
        )

    def after(self, seconds: float, happen: Callable[[Any], None], argument: Any) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), happen, argument))

    def _begin(self, _: None) -> None:
        for device in self.devices:
            device.advance()
        self.busy_before = [device.busy_s for device in self.devices]

    # --- what a device reports

    def seen(self, request: Request, cached: int) -> None:
        if self.is_counted(request):
            self.prompt_tokens += request.prompt
            self.cached_tokens += cached

    def first(self, attempt: Attempt) -> None:
        request = attempt.request
        request.first_s = self.now - request.at
        router, target = attempt.path[-1]
        router.hedging.answered(target, self.now - attempt.at)
        if self.is_counted(request):
            self.ttfts.append(request.first_s)
        for other in request.attempts:
            if other is not attempt and not other.is_over:
                other.device.cancel(other)
                self._uncount(other)
                router, target = other.path[-1]
                router.hedging.lost(target, self.now - other.at)

    def ended(self, attempt: Attempt) -> None:
        self._uncount(attempt)
        conversation = attempt.request.conversation
        self.after(conversation.random.expovariate(1 / self.plan.turn_s), self._turn, conversation)

    def is_counted(self, request: Request) -> bool:
        return request.at >= self.plan.warm_s

    # --- what clients do

    def _arrive(self, _: None) -> None:
        self._turn(Conversation(next(self.conversations), self.plan))
        self.after(self.arrivals.expovariate(self.rate), self._arrive, None)

    def _turn(self, conversation: Conversation) -> None:
        if turn := conversation.turn():
            self._send(Request(conversation, *turn, self.now, conversation.blocks(turn[0])))

    def _send(self, request: Request) -> None:
        router = self.routers[request.conversation.number % len(self.routers)]
        found = router.route(request, {attempt.device for attempt in request.attempts})
        if found is None:
            self.lost += self.is_counted(request) and request.first_s is None
        else:
            self._begin_attempt(request, found)
            self._hedge_later(request)

    def _begin_attempt(self, request: Request, found: Route) -> None:
        attempt = Attempt(request, *found, self.now)
        for counter, target in attempt.path:
            counter.count(target, +1)
        request.attempts.append(attempt)
        attempt.device.submit(attempt)

    def _uncount(self, attempt: Attempt) -> None:
        for counter, target in attempt.path:
            counter.count(target, -1)

    # --- a second attempt

    def _hedge_later(self, request: Request) -> None:
        router, target = request.attempts[-1].path[-1]
        router.hedging.earn()
        if self.plan.hedge and (late_s := router.hedging.late_s(target)) is not None:
            self.after(late_s, self._hedge, request.attempts[-1])

    def _hedge(self, first: Attempt) -> None:
        """As in `Pool.second`: a second device has at most twice the requests of the first one for its weight."""
        request, (router, target) = first.request, first.path[-1]
        if request.first_s is not None or first.is_over or not router.hedging.has_credit():
            return
        load = [load / weight for load, weight in router.candidates]
        busier = {device for i, device in enumerate(router.targets) if i == target or load[i] > OVERLOAD * load[target]}
        if found := router.route(request, busier):
            router.hedging.spend()
            self.hedged += self.is_counted(request)
            self._begin_attempt(request, (found[0], [*first.path[:-1], *found[1]]))

    # --- faults

    def _make_faults(self) -> None:
        plan, numbers = self.plan, list(range(self.plan.devices))
        self.random.shuffle(numbers)
        unlucky: Iterator[int] = iter(numbers)
        for number in itertools.islice(unlucky, round(plan.slow * plan.devices)):
            self.devices[number].pace = self.devices[number].speed = 1 / 3
        for number in itertools.islice(unlucky, round(plan.stalling * plan.devices)):
            self.after(self.random.expovariate(1 / 120), self._stall, number)
        for number in itertools.islice(unlucky, round(plan.crashing * plan.devices)):
            self.after(self.random.expovariate(1 / 120), self._crash, number)

    def _stall(self, number: int) -> None:
        self.devices[number].set_speed(0.0)
        self.after(20.0, self._resume, number)
        self.after(20.0 + self.random.expovariate(1 / 120), self._stall, number)

    def _crash(self, number: int) -> None:
        lost = self.devices[number].crash()
        for router in self.leaves():
            router.down |= {i for i, target in enumerate(router.targets) if target is self.devices[number]}
        for attempt in lost:
            attempt.is_over = True
            self._uncount(attempt)
            if attempt.has_first:
                self.lost += self.is_counted(attempt.request)
            elif all(each.is_over for each in attempt.request.attempts):
                self._send(attempt.request)
        self.after(30.0, self._resume, number)
        self.after(30.0 + self.random.expovariate(1 / 120), self._crash, number)

    def _resume(self, number: int) -> None:
        device = self.devices[number]
        for router in self.leaves():
            router.down -= {i for i, target in enumerate(router.targets) if target is device}
        device.set_speed(device.pace)

    # --- the gateways

    def _router(self, number: int) -> Router:
        plan, seed = self.plan, self.plan.seed << 16 | number << 8
        if not plan.group:
            return Router(self.devices, self.weights, plan.policy, seed, plan.index)
        starts = range(0, plan.devices, plan.group)
        cut = [slice(start, start + plan.group) for start in starts]
        groups = [Router(self.devices[s], self.weights[s], plan.policy, seed + 1 + i) for i, s in enumerate(cut)]
        return Router(groups, [sum(self.weights[s]) for s in cut], plan.policy, seed, plan.index)

    def leaves(self) -> Iterator[Router]:
        for router in self.routers:
            yield from (each for each in router.targets if isinstance(each, Router)) if self.plan.group else (router,)
