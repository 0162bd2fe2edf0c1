"""A gateway: the choice of a target for each request."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection

from fleet.device import Device, Request
from fleet.plan import Policy
from gateway.engines.upstream.hedge import Hedging
from gateway.engines.upstream.policy import Candidate, choose
from gateway.engines.upstream.prefixes import INDEX_BLOCKS, PrefixIndex

Route = tuple[Device, list[tuple["Router", int]]]


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
        self.random, self.salt = random.Random(seed), (seed & 0xFF) << 40
        self.candidates = [Candidate(0, weight) for weight in weights]
        self.index = PrefixIndex(len(targets), size)
        self.down: set[int] = set()
        self.cumulative = list(itertools.accumulate(weights))
        self.hedging = Hedging(range(len(targets)))

    def route(self, request: Request, avoided: Collection[object]) -> Route | None:
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
                return self._drawn(random.Random(request.conversation.number | self.salt), open_)
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
