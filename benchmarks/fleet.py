"""A simulation of many NPUs behind a gateway: conversations, devices with prefix caches, faults, and a router.

The router calls the gateway's own `choose` and `PrefixIndex`. A device has the published times of Llama 3.2 3B, our
worker's slots and prefix cache, and shares its time equally between the requests that run, as our worker does: the next
call is for the request that has had the least. Only the end of a prefill and the end of an answer are events.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.engines.scripted.script import CHIPS, Chip
from gateway.engines.upstream.policy import Candidate, choose
from gateway.engines.upstream.prefixes import BLOCK_TOKENS, INDEX_BLOCKS, PrefixIndex

CONTEXT = 4096  # tokens
SLOTS = 4  # max_sequences
SNAPSHOT_TOKENS = (256 << 20) // 57_344  # the worker's snapshots: 256 MiB, 57,344 bytes for each token at 8 bits
TURN_S = 20.0  # mean time between an answer and the next message
LAST_TURN = 0.2  # share of the turns that end a conversation
BASE = CHIPS["x-elite"]

Policy = Literal["random", "sticky", "two choices", "least-loaded", "affine"]


class Conversation:
    """The turns of one chat with an application's system prompt. Turns are drawn one after another."""

    def __init__(self, number: int, seed: int) -> None:
        self.number = number
        self.random = random.Random(seed << 32 | number)
        self.app = min(int(self.random.paretovariate(0.7)) - 1, 29)  # some applications have most conversations
        self.shared = (0, 250, 500, 900, 1300, 1700)[self.app % 6]  # tokens of the system prompt
        self.length = self.shared  # tokens so far

    def turn(self) -> tuple[int, int] | None:
        """Tokens of the prompt and of the answer; None: the conversation is over."""
        draw, is_first = self.random, self.length == self.shared
        if not is_first and draw.random() < LAST_TURN:
            return None
        message = min(draw.lognormvariate(math.log(80), 1.0), 2000)
        if draw.random() < (0.3 if is_first else 0.05):
            message += draw.uniform(300, 1500)  # with a document
        answer = min(max(draw.lognormvariate(math.log(110), 0.7), 5), 600)
        prompt = self.length + int(message) + 1
        if prompt + answer > CONTEXT:
            return None
        self.length = prompt + int(answer)
        return prompt, int(answer)

    def blocks(self, tokens: int) -> list[int]:
        """Hashes of the full blocks. Those of the system prompt are shared."""
        most, shared = tokens // BLOCK_TOKENS, min(tokens, self.shared) // BLOCK_TOKENS
        common, own = -1 - 64 * self.app, 64 * self.number
        return [*range(common, common - shared, -1), *range(own + shared, own + most)]


@dataclass(eq=False, slots=True)
class Rows:
    """The rows of a slot or a snapshot."""

    conversation: Conversation | None = None
    length: int = 0
    is_busy: bool = False
    used: int = 0

    def common(self, other: Conversation) -> int:
        if self.conversation is other:
            return self.length
        same = self.conversation is not None and self.conversation.app == other.app
        return min(self.length, other.shared) if same else 0


class Cache:
    """The rules of `gateway/worker/slots.py` for conversations instead of tokens, which is much faster."""

    def __init__(self) -> None:
        self.slots = [Rows() for _ in range(SLOTS)]
        self.snapshots: list[Rows] = []
        self._clock = itertools.count(1)

    def take(self, conversation: Conversation, tokens: int) -> tuple[Rows, int]:
        """A slot, and the tokens of the prompt that it has."""
        found = [(rows.common(conversation), rows) for rows in (*self.slots, *self.snapshots)]
        cached, donor = max(found, key=lambda each: (each[0], self._is_free(each[1]), each[1].used))
        cached = max(0, min(cached, tokens - 2))
        if self._is_free(donor) and cached and cached * 2 >= donor.length:
            slot = donor
        else:
            slot = min((rows for rows in self.slots if not rows.is_busy), key=lambda rows: rows.used)
            self._save(slot)
            if cached:
                donor.used = next(self._clock)
        slot.conversation, slot.length, slot.is_busy, slot.used = conversation, cached, True, next(self._clock)
        return slot, cached

    def release(self, slot: Rows, tokens: int) -> None:
        slot.length, slot.is_busy, slot.used = tokens, False, next(self._clock)

    def _is_free(self, rows: Rows) -> bool:
        return not rows.is_busy and rows not in self.snapshots

    def _save(self, slot: Rows) -> None:
        if slot.length < 16 or slot.conversation is None:
            return
        kept = [old for old in self.snapshots if old.length > min(slot.length, slot.common(_of(old)))]
        kept.append(Rows(slot.conversation, slot.length, used=slot.used))
        kept.sort(key=lambda rows: rows.used)
        while sum(rows.length for rows in kept) > SNAPSHOT_TOKENS:
            del kept[0]
        self.snapshots = kept


def _of(rows: Rows) -> Conversation:
    assert rows.conversation is not None
    return rows.conversation


@dataclass(eq=False, slots=True)
class Request:
    conversation: Conversation
    prompt: int
    answer: int
    at: float
    blocks: list[int]
    attempts: list[Attempt] = field(default_factory=list)
    first_s: float | None = None  # time to first token


@dataclass(eq=False, slots=True)
class Attempt:
    request: Request
    device: Device
    path: list[tuple[Router, int]]  # the routers that count it, and their target
    slot: Rows | None = None
    has_first: bool = False
    is_over: bool = False


class Device:
    """Its time is shared: with n running requests, each gets 1/n of it. `virtual` is the time that each has had."""

    def __init__(self, fleet: Fleet, chip: Chip, pace: float = 1.0) -> None:
        self.fleet, self.chip, self.pace, self.speed = fleet, chip, pace, pace
        self.cache, self.queue = Cache(), deque[Attempt]()
        self.running: list[tuple[float, int, Attempt]] = []  # a heap; `virtual` of the next milestone
        self.active, self.virtual, self.since, self.busy_s, self.version = 0, 0.0, 0.0, 0.0, 0

    def submit(self, attempt: Attempt) -> None:
        self.advance()
        self.queue.append(attempt)
        self.proceed()

    def cancel(self, attempt: Attempt) -> None:
        self.advance()
        attempt.is_over = True
        if attempt.slot is not None:
            self._release(attempt)
        self.proceed()

    def set_speed(self, speed: float) -> None:
        self.advance()
        self.speed = speed
        self.proceed()

    def crash(self) -> list[Attempt]:
        """Lose the cache and all requests; returns them."""
        lost = [each for each in (*(entry[2] for entry in self.running), *self.queue) if not each.is_over]
        self.set_speed(0.0)
        self.cache, self.queue, self.running, self.active = Cache(), deque(), [], 0
        return lost

    def advance(self) -> None:
        passed, self.since = self.fleet.now - self.since, self.fleet.now
        if self.active and self.speed:
            self.busy_s += passed
            self.virtual += passed * self.speed / self.active

    def proceed(self) -> None:
        """Fill the slots and plan the next milestone."""
        while self.queue and self.active < SLOTS:
            attempt = self.queue.popleft()
            if not attempt.is_over:
                self._start(attempt)
        while self.running and self.running[0][2].is_over:
            heapq.heappop(self.running)
        self.version += 1
        if self.running and self.speed:
            left = max(0.0, self.running[0][0] - self.virtual)
            self.fleet.after(left * self.active / self.speed, self._milestone, self.version)

    def _start(self, attempt: Attempt) -> None:
        request = attempt.request
        attempt.slot, cached = self.cache.take(request.conversation, request.prompt)
        self.fleet.seen(request, cached)
        passes = math.ceil((request.prompt - cached) / self.chip.chunk_width)
        self.active += 1
        self._push(attempt, self.virtual + passes * self.chip.chunk_s)

    def _push(self, attempt: Attempt, due: float) -> None:
        heapq.heappush(self.running, (due, next(self.fleet.numbers), attempt))

    def _release(self, attempt: Attempt) -> None:
        assert attempt.slot is not None
        self.active -= 1
        tokens = attempt.request.prompt + (attempt.request.answer if attempt.has_first else 0)
        self.cache.release(attempt.slot, tokens)

    def _milestone(self, version: int) -> None:
        if version != self.version:
            return
        self.advance()
        due, _, attempt = heapq.heappop(self.running)
        if not attempt.has_first:
            attempt.has_first = True
            self._push(attempt, due + (attempt.request.answer - 1) * self.chip.step_s)
            self.fleet.first(attempt)
        else:
            attempt.is_over = True
            self._release(attempt)
            self.fleet.ended(attempt)
        self.proceed()


class Router:
    """A gateway with several targets: devices, or other routers."""

    def __init__(
        self,
        targets: list[Device] | list[Router],
        weights: list[float],
        policy: Policy,
        seed: int,
        size: int = INDEX_BLOCKS,
    ) -> None:
        self.targets, self.weights, self.policy = targets, weights, policy
        self.random = random.Random(seed)
        self.candidates = [Candidate(0, weight) for weight in weights]
        self.index = PrefixIndex(len(targets), size)
        self.down: set[int] = set()
        self.cumulative = list(itertools.accumulate(weights))

    def route(self, request: Request, avoided: set[Device]) -> tuple[Device, list[tuple[Router, int]]] | None:
        closed = self.down | {i for i, target in enumerate(self.targets) if target in avoided} if avoided else self.down
        open_ = [i for i in range(len(self.targets)) if i not in closed] if closed else range(len(self.targets))
        if not open_:
            return None
        chosen = self._pick(request, open_)
        if self.policy == "affine":
            self.index.note(chosen, request.blocks)
        target = self.targets[chosen]
        if isinstance(target, Device):
            return target, [(self, chosen)]
        below = target.route(request, avoided)
        return below and (below[0], [(self, chosen), *below[1]])

    def count(self, target: int, change: int) -> None:
        load, weight = self.candidates[target]
        self.candidates[target] = Candidate(load + change, weight)

    def _pick(self, request: Request, open_: list[int] | range) -> int:
        match self.policy:
            case "random":
                return self._drawn(self.random, open_)
            case "sticky":
                return self._drawn(random.Random(request.conversation.number), open_)
            case "two choices":
                open_ = [self._drawn(self.random, open_), self._drawn(self.random, open_)]
        tie, is_all = self.random.getrandbits(32), len(open_) == len(self.targets)
        matches = self.index.matches(request.blocks) if self.policy == "affine" else [0] * len(self.targets)
        if is_all and self.policy != "two choices":
            return choose(self.candidates, matches, tie).index
        candidates = [self.candidates[i] for i in open_]
        return open_[choose(candidates, [matches[i] for i in open_], tie).index]

    def _drawn(self, draw: random.Random, open_: list[int] | range) -> int:
        """A target that is open, by weight."""
        while True:
            (target,) = draw.choices(range(len(self.targets)), cum_weights=self.cumulative)
            if target in open_:
                return target


@dataclass(kw_only=True)
class Plan:
    """What is simulated. `load`: the share of the device time that is needed if every known prefix is cached."""

    devices: int = 100
    policy: Policy = "affine"
    load: float = 0.6
    seconds: float = 900.0
    warm_s: float = 300.0  # not counted
    seed: int = 1
    group: int = 0  # devices behind each gateway of a second level; 0: one level
    gateways: int = 1  # that do not know each other's requests; a conversation uses one of them
    index: int = INDEX_BLOCKS
    slow: float = 0.0  # share of devices at a third of their speed, which no gateway knows
    stalling: float = 0.0  # share of devices that stop for 20 s now and then
    crashing: float = 0.0  # share of devices that lose everything now and then, and are back after 30 s
    hedge: float = 0.0  # quantile of the time to first token after which a second device is used; 0: never


class Fleet:
    """One run. `ttfts` and the other figures are of the requests after `warm_s`."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.now, self.numbers = plan, 0.0, itertools.count()
        self.random = random.Random(plan.seed)
        self.events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self.ttfts: list[float] = []
        self.recent: deque[float] = deque(maxlen=500)
        self.hedge_s = math.inf
        self.prompt_tokens = self.cached_tokens = self.hedged = self.lost = self.spilled = 0
        chips = [BASE, CHIPS["x2-elite"]]
        self.devices = [Device(self, chips[i % 2]) for i in range(plan.devices)]
        self.weights = [1.0 + i % 2 for i in range(plan.devices)]
        self.routers = [self._router(i) for i in range(plan.gateways)]
        self.conversations = itertools.count()
        self.rate = plan.load * sum(self.weights) / conversation_s(plan.seed)  # conversations a second
        self._make_faults()
        self.arrivals = random.Random(plan.seed)
        self.after(0.0, self._arrive, None)

    def run(self) -> Fleet:
        while self.events:
            self.now, _, happen, argument = heapq.heappop(self.events)
            if self.now > self.plan.seconds:
                break
            happen(argument)
        return self

    def after(self, seconds: float, happen: Callable[[Any], None], argument: Any) -> None:
        heapq.heappush(self.events, (self.now + seconds, next(self.numbers), happen, argument))

    # --- what a device reports

    def seen(self, request: Request, cached: int) -> None:
        if self.is_counted(request):
            self.prompt_tokens += request.prompt
            self.cached_tokens += cached

    def first(self, attempt: Attempt) -> None:
        request = attempt.request
        request.first_s = self.now - request.at
        self.recent.append(request.first_s)
        if self.is_counted(request):
            self.ttfts.append(request.first_s)
        for other in request.attempts:
            if other is not attempt and not other.is_over:
                other.device.cancel(other)
                self._uncount(other)

    def ended(self, attempt: Attempt) -> None:
        self._uncount(attempt)
        conversation = attempt.request.conversation
        self.after(conversation.random.expovariate(1 / TURN_S), self._turn, conversation)

    def is_counted(self, request: Request) -> bool:
        return request.at >= self.plan.warm_s

    # --- what clients do

    def _arrive(self, _: None) -> None:
        self._turn(Conversation(next(self.conversations), self.plan.seed))
        self.after(self.arrivals.expovariate(self.rate), self._arrive, None)

    def _turn(self, conversation: Conversation) -> None:
        if turn := conversation.turn():
            request = Request(conversation, *turn, self.now, conversation.blocks(turn[0]))
            self._send(request)
            if self.plan.hedge and len(self.recent) == self.recent.maxlen:
                self._hedge_later(request)

    def _send(self, request: Request) -> None:
        router = self.routers[request.conversation.number % len(self.routers)]
        found = router.route(request, {attempt.device for attempt in request.attempts})
        if found is None:
            self.lost += self.is_counted(request) and request.first_s is None
            return
        attempt = Attempt(request, *found)
        for counter, target in attempt.path:
            counter.count(target, +1)
        request.attempts.append(attempt)
        attempt.device.submit(attempt)

    def _uncount(self, attempt: Attempt) -> None:
        for counter, target in attempt.path:
            counter.count(target, -1)

    # --- a second attempt

    def _hedge_later(self, request: Request) -> None:
        if next(self.numbers) % 50 == 0 or self.hedge_s == math.inf:
            self.hedge_s = quantile(list(self.recent), self.plan.hedge)
        self.after(self.hedge_s, self._hedge, request)

    def _hedge(self, request: Request) -> None:
        if request.first_s is None and len(request.attempts) == 1 and not request.attempts[0].is_over:
            self.hedged += self.is_counted(request)
            self._send(request)

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
        for router in self._leaves():
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
        for router in self._leaves():
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

    def _leaves(self) -> Iterator[Router]:
        for router in self.routers:
            yield from (each for each in router.targets if isinstance(each, Router)) if self.plan.group else (router,)


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def conversation_s(seed: int, count: int = 2000) -> float:
    """Mean device time of a conversation on the slower chip, if the cache has every message that was sent before."""
    total = 0.0
    for number in range(count):
        conversation = Conversation((1 << 31) + number, seed)
        known = conversation.length
        while turn := conversation.turn():
            total += math.ceil((turn[0] - known) / BLOCK_TOKENS) * BASE.chunk_s + (turn[1] - 1) * BASE.step_s
            known = conversation.length
    return total / count
