"""The memory budget: what is loaded, what is unloaded for it, and who waits. In virtual time."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

import pytest

from gateway.config.tables import BreakerConfig, Config, ModelConfig, ScriptedModel
from gateway.engines.base import Emit, Prepared
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import BundleError, Conflict, GatewayError, ModelNotReady, ModelTooLarge
from gateway.generation import Meter, Usage
from gateway.lanes.lane import Lane
from gateway.lanes.memory import manager
from gateway.lanes.memory.claim import Claim
from gateway.lanes.memory.eviction import victims
from gateway.lanes.memory.manager import MemoryManager
from gateway.lanes.memory.residency import Residency
from gateway.lanes.router import Router
from tests.support.routing import answer_of, model, noted, request
from tests.support.virtual_time import in_virtual_time, now

LOAD_S, ANSWER_S, CLOSE_S = 3.0, 1.0, 0.2


class Engine(ScriptedEngine):
    """Counts its memory from the begin of its load to the end of `aclose`. It is never closed with a request in it."""

    used_mb: ClassVar[int] = 0
    budget_mb: ClassVar[float] = 0
    loads: ClassVar[list[str]] = []  # names, in the order of the loads
    fault_share: ClassVar[float] = 0.0  # of the loads that fail
    freed: ClassVar[Counter[str]] = Counter()
    chance: ClassVar[random.Random]

    def __init__(self, name: str, table: ScriptedModel) -> None:
        super().__init__(name, table, clock=now)
        self._mb = table.script.memory_mb
        self._is_counted, self._runs = False, 0
        self.ends = False  # the gateway ends: requests in progress are cut

    async def start(self) -> None:
        self._add(self._mb)
        Engine.loads.append(self._name)
        assert Engine.used_mb <= Engine.budget_mb, f"{self._name} does not fit"
        try:
            if Engine.chance.random() < Engine.fault_share:
                await asyncio.sleep(1.0)
                raise BundleError("model.onnx is missing")
            await super().start()
        except GatewayError:
            self._add(-self._mb)
            raise

    async def run(self, prepared: Prepared, meter: Meter, emit: Emit) -> Usage:
        assert self._is_counted
        self._runs += 1
        try:
            return await super().run(prepared, meter, emit)
        finally:
            self._runs -= 1

    def free_cache(self) -> None:
        assert not self._runs
        Engine.freed[self._name] += 1

    async def aclose(self) -> None:
        assert not self._runs or self.ends, f"{self._name} is unloaded with a request in progress"
        await super().aclose()
        await asyncio.sleep(CLOSE_S)
        if self._is_counted:
            self._add(-self._mb)

    def _add(self, size: int) -> None:
        Engine.used_mb += size
        self._is_counted = not self._is_counted


@asynccontextmanager
async def gateway(budget_mb: float, seed: int = 0, **models: ModelConfig) -> AsyncIterator[tuple[Router, Residency]]:
    Engine.used_mb, Engine.budget_mb, Engine.loads, Engine.fault_share = 0, budget_mb, [], 0.0
    Engine.chance, Engine.freed = random.Random(seed), Counter()
    config = Config(models=models, breaker=BreakerConfig(enabled=False))
    memory = MemoryManager(budget_mb * 1_000_000, clock=now)

    def lane(name: str, table: ModelConfig) -> Lane:
        assert isinstance(table, ScriptedModel)
        return Lane(name, table, Engine(name, table), config.breaker, clock=now, memory=memory)

    async def make_lane(name: str, table: ModelConfig) -> Lane:
        await asyncio.sleep(0.01)
        return lane(name, table)

    router = Router(config, {name: lane(name, table) for name, table in models.items()}, now)
    residency = Residency(router, make_lane)
    managing = asyncio.create_task(memory.run(residency.release))
    await router.start()
    await router.tried()
    try:
        yield router, residency
    finally:
        managing.cancel()
        await asyncio.gather(managing, return_exceptions=True)
        for each in (*router.lanes.values(), *router.replaced):
            each.engine.ends = True  # type: ignore[attr-defined]
        await residency.aclose()
        await router.aclose()
        assert Engine.used_mb == 0


def sized(mb: int, load: str = "demand", **fields: Any) -> ScriptedModel:
    """A model of that size, which loads in 3 s and answers in 1 s."""
    return model(memory_mb=mb, load=load, **{"load_s": LOAD_S, "ttft_s": ANSWER_S, **fields})


def states(router: Router) -> str:
    """The names of the models that are loaded."""
    return "".join(lane.model for lane in router.status() if lane.engine.state == "ready")


async def ask(router: Router, name: str, **fields: Any) -> float:
    """Seconds until the answer."""
    start = now()
    assert (await answer_of(router, request(name, **fields)))[0] == name
    return now() - start


@in_virtual_time
async def test_model_on_demand_is_loaded_by_its_first_request() -> None:
    async with gateway(100, a=sized(10), b=sized(10, "start")) as (router, _):
        assert states(router) == "b"
        status = router.status()[0]
        assert (status.engine.state, status.is_ready) == ("unloaded", True)
        assert (status.memory.need, status.memory.load_s, status.memory.budget) == (10_000_000, LOAD_S, 100_000_000)
        assert await ask(router, "a") == pytest.approx(LOAD_S + ANSWER_S)
        assert await ask(router, "a") == pytest.approx(ANSWER_S)


@in_virtual_time
async def test_least_recently_used_model_is_unloaded_for_another() -> None:
    async with gateway(30, a=sized(10), b=sized(10), c=sized(10), d=sized(20)) as (router, _):
        for name in "abca":
            await ask(router, name)
        await asyncio.sleep(LOAD_S)
        assert states(router) == "abc"
        await ask(router, "d")
        assert states(router) == "ad"


@in_virtual_time
async def test_idle_model_goes_before_a_busy_one_and_a_pinned_one_never() -> None:
    models = {"p": sized(10, pinned=True), "a": sized(10, ttft_s=60.0), "b": sized(10), "c": sized(10)}
    async with gateway(30, **models) as (router, _):
        await ask(router, "p")
        busy = asyncio.create_task(ask(router, "a"))
        await asyncio.sleep(LOAD_S + 1.0)
        await ask(router, "b")  # used last
        assert await ask(router, "c") == pytest.approx(1.0 + CLOSE_S + LOAD_S + ANSWER_S, abs=0.1)
        assert states(router) == "pac"
        await busy


@in_virtual_time
async def test_pinned_model_stays_and_is_named_when_nothing_else_can_go() -> None:
    async with gateway(30, a=sized(20, "start", pinned=True), b=sized(20), c=sized(10)) as (router, _):
        await ask(router, "c")
        with pytest.raises(ModelTooLarge) as refused:
            await ask(router, "b")
        assert refused.value.message == (
            "b needs 20 MB, and the pinned models leave 10 MB of 30 MB: raise [memory] budget_mb, or remove `pinned` "
            "from a model."
        )
        assert states(router) == "ac"


@in_virtual_time
async def test_model_larger_than_the_budget_is_refused_and_nothing_is_unloaded_for_it() -> None:
    async with gateway(30, a=sized(10), b=sized(31), c=sized(40, "start")) as (router, _):
        await ask(router, "a")
        for name, size in (("b", 31), ("c", 40)):
            with pytest.raises(ModelNotReady, match=rf"needs {size} MB, and all .* 30 MB: raise \[memory\] budget_mb"):
                await ask(router, name)
        assert states(router) == "a" and Engine.loads == ["a"]


@in_virtual_time
async def test_models_of_the_start_that_do_not_fit_together_wait_for_their_first_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with gateway(30, a=sized(20, "start"), b=sized(20, "start"), c=sized(10, "start")) as (router, _):
        assert states(router) == "ac"
        assert "b does not fit into [memory] budget_mb with the others; its first request loads it" in caplog.text
        await ask(router, "b")
        assert states(router) == "bc"


@in_virtual_time
async def test_busy_model_finishes_its_accepted_requests_before_it_is_unloaded() -> None:
    async with gateway(10, a=sized(10, max_sequences=1), b=sized(10)) as (router, _):
        await ask(router, "a")
        await asyncio.sleep(LOAD_S)
        start = now()
        first = [asyncio.create_task(ask(router, "a")) for _ in range(4)]
        await asyncio.sleep(0.5)
        other = asyncio.create_task(ask(router, "b"))
        await asyncio.sleep(0.5)
        late = asyncio.create_task(ask(router, "a"))
        await asyncio.gather(*first)
        assert now() - start == pytest.approx(4 * ANSWER_S)
        assert await other == pytest.approx(3.5 + CLOSE_S + LOAD_S + ANSWER_S, abs=0.1)
        assert await late == pytest.approx(3.0 + 2 * (CLOSE_S + LOAD_S + ANSWER_S) + 1.0, abs=0.1)


@in_virtual_time
async def test_two_models_that_do_not_fit_together_take_turns_without_thrashing() -> None:
    """Each has clients without a pause. Loads take at most half of the time, and both are served."""
    async with gateway(10, a=sized(10), b=sized(10)) as (router, _):
        served: Counter[str] = Counter()

        async def client(name: str) -> None:
            while True:
                await ask(router, name)
                served[name] += 1

        clients = [asyncio.create_task(client(name)) for name in "aabb"]
        await asyncio.sleep(200.0)
        for each in clients:
            each.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        assert len(Engine.loads) <= 200.0 / (2 * LOAD_S) + 1
        assert min(served.values()) > 40, served


@in_virtual_time
async def test_waiting_loads_go_in_order_and_no_later_one_takes_the_memory() -> None:
    async with gateway(20, a=sized(10), b=sized(20), c=sized(10), d=sized(10)) as (router, _):
        busy = asyncio.create_task(ask(router, "a"))
        await asyncio.sleep(0.1)
        others = []
        for name in "bcd":
            others.append(asyncio.create_task(ask(router, name)))
            await asyncio.sleep(0.1)
        await asyncio.gather(busy, *others)
        assert Engine.loads == ["a", "b", "c", "d"]


@in_virtual_time
async def test_limit_of_first_token_includes_the_load_and_the_wait_for_memory() -> None:
    async with gateway(10, a=sized(10, fallback="c"), b=sized(10), c=sized(0, "start")) as (router, _):
        assert (await answer_of(router, request("a", ttft_timeout_s=LOAD_S - 0.1)))[0] == "c"
        await asyncio.sleep(LOAD_S)
        assert states(router) == "ac"  # the memory was free, so the refused request loaded it
        busy = asyncio.create_task(ask(router, "a"))
        await asyncio.sleep(0.5)
        with pytest.raises(ModelNotReady, match=r"b is being loaded, which takes about 4\.5") as refused:
            await answer_of(router, request("b", ttft_timeout_s=LOAD_S + 1.0))
        assert refused.value.retry_after_s == pytest.approx(4.5, abs=0.1)
        await busy
        await asyncio.sleep(LOAD_S + 1.0)
        assert states(router) == "ac"  # a was used a moment ago
        await asyncio.sleep(15.0)
        assert states(router) == "bc"


@in_virtual_time
async def test_idle_model_frees_its_cache_before_its_weights_and_is_unloaded_after_keep_alive() -> None:
    async with gateway(10, a=sized(5, keep_alive=1000.0), b=sized(5, keep_alive=0.0)) as (router, _):
        await ask(router, "b")
        await asyncio.sleep(CLOSE_S + 0.1)
        assert states(router) == ""
        await ask(router, "a")
        await asyncio.sleep(1.0)
        assert router.status()[0].memory.expires_s == pytest.approx(999.0)
        await asyncio.sleep(598.0)
        assert Engine.freed == Counter()
        await asyncio.sleep(2.0)
        assert Engine.freed == Counter(a=1) and states(router) == "a"
        await ask(router, "a")
        await asyncio.sleep(999.0)
        assert Engine.freed == Counter(a=2) and states(router) == "a"
        await asyncio.sleep(2.0)
        assert states(router) == "" and router.status()[0].memory.expires_s is None


@in_virtual_time
async def test_keep_alive_of_a_request_replaces_that_of_the_model_but_not_of_its_fallback() -> None:
    failing = sized(1, load_error="no file", fallback="a")
    async with gateway(10, a=sized(5), b=sized(5, pinned=True), c=failing) as (router, _):
        await answer_of(router, request("c", keep_alive_s=0.0))
        await ask(router, "b", keep_alive_s=0.0)
        await asyncio.sleep(10.0)
        assert states(router) == "ab"  # pinned
        await ask(router, "a", keep_alive_s=20.0)
        await asyncio.sleep(19.0)
        assert states(router) == "ab"
        await asyncio.sleep(2.0)
        assert states(router) == "b"


@in_virtual_time
async def test_load_after_a_failure_unloads_nothing() -> None:
    async with gateway(10, a=sized(10), b=sized(10)) as (router, _):
        await ask(router, "a")
        await asyncio.sleep(20.0)
        Engine.fault_share = 1.0
        with pytest.raises(ModelNotReady):
            await ask(router, "b")
        Engine.fault_share = 0.0
        await ask(router, "a")
        await asyncio.sleep(100.0)
        assert states(router) == "a" and Engine.loads == ["a", "b", "a"]
        await ask(router, "b")  # its next request tries it again
        assert states(router) == "b"


@in_virtual_time
async def test_load_that_a_client_wants_after_a_failure_unloads_others() -> None:
    async with gateway(10, a=sized(10), b=sized(10)) as (router, residency):
        Engine.fault_share = 1.0
        with pytest.raises(ModelNotReady):
            await ask(router, "b")
        Engine.fault_share = 0.0
        other = asyncio.create_task(ask(router, "a"))
        await asyncio.sleep(0.1)  # the pause of b has not ended
        assert (await residency.load("b")).is_ready and states(router) == "b"
        await other


@in_virtual_time
async def test_model_that_failed_once_is_loaded_after_another_client_has_waited_for_its_memory() -> None:
    async with gateway(10, a=sized(5, ttft_s=30.0), b=sized(5), c=sized(10)) as (router, _):
        busy = asyncio.create_task(ask(router, "a"))
        await asyncio.sleep(LOAD_S + 1.0)
        Engine.fault_share = 1.0
        failing = asyncio.create_task(ask(router, "b"))
        await asyncio.sleep(0.9)
        waiting = asyncio.create_task(ask(router, "c"))  # for all of the memory: the retry of b is behind it
        with pytest.raises(ModelNotReady):
            await failing
        Engine.fault_share = 0.0
        await asyncio.gather(busy, waiting)
        assert states(router) == "c"
        await ask(router, "b")


@in_virtual_time
async def test_model_without_a_need_of_memory_waits_for_no_client() -> None:
    async with gateway(10, a=sized(10, ttft_s=30.0), b=sized(10), p=sized(0)) as (router, _):
        others = [asyncio.create_task(ask(router, "a"))]
        await asyncio.sleep(0.1)
        others.append(asyncio.create_task(ask(router, "b")))
        await asyncio.sleep(0.1)
        assert await ask(router, "p") == pytest.approx(LOAD_S + ANSWER_S)
        await asyncio.gather(*others)


@in_virtual_time
async def test_model_that_grows_over_the_budget_is_not_cut_off_and_idle_ones_go() -> None:
    async with gateway(30, a=sized(10), b=sized(10), c=sized(10), p=sized(0), d=sized(15)) as (router, _):
        for name in "abc":
            await ask(router, name)
        busy = asyncio.create_task(ask(router, "c"))
        await asyncio.sleep(0.1)
        lane = router.lanes["c"]
        lane.memory.measured(lane.claim, 15_000_000)
        assert await ask(router, "p") < LOAD_S + CLOSE_S + ANSWER_S + 0.1  # what needs no memory waits for none
        await busy
        assert states(router) == "bcp"
        lane.memory.set_budget(5_000_000)
        await asyncio.sleep(20.0)
        assert states(router) == "p"
        lane.memory.set_budget(30_000_000)
        await ask(router, "d")
        assert states(router) == "pd"


@pytest.mark.parametrize(("gives_back", "left"), [(True, "ab"), (False, "b")])
@in_virtual_time
async def test_cache_of_an_idle_model_is_freed_before_weights_are_unloaded(gives_back: bool, left: str) -> None:
    """Nothing is unloaded if that is enough. If the measurement says that it was not, models are unloaded then."""
    async with gateway(30, a=sized(15), b=sized(10)) as (router, _):
        await ask(router, "a")
        lane = router.lanes["a"]
        lane.memory.measured(lane.claim, 25_000_000)
        await asyncio.sleep(20.0)
        waiting = asyncio.create_task(ask(router, "b"))
        await asyncio.sleep(0.5)
        assert Engine.freed == Counter(a=1) and states(router) == "a"
        lane.memory.measured(lane.claim, 25_000_000)  # it began before the cache was freed
        await asyncio.sleep(1.5)
        lane.memory.measured(lane.claim, 15_000_000 if gives_back else 25_000_000)
        await waiting
        assert states(router) == left


@in_virtual_time
async def test_caches_stay_when_they_are_not_enough_and_a_lost_measurement_stops_nothing() -> None:
    async with gateway(30, p=sized(10, pinned=True), a=sized(5), b=sized(17), c=sized(15), d=sized(21)) as (router, _):
        for name in "pa":
            await ask(router, name)
            lane = router.lanes[name]
            lane.memory.measured(lane.claim, 12_000_000)
        await asyncio.sleep(20.0)
        with pytest.raises(ModelTooLarge, match="the pinned models leave 20 MB of 30 MB"):
            await ask(router, "d")
        await ask(router, "b")  # the caches are 9 MB, and 11 MB are missing
        assert Engine.freed == Counter() and states(router) == "pb"
        await asyncio.sleep(20.0)
        await ask(router, "c")
        assert Engine.freed == Counter() and states(router) == "pc"
        lane = router.lanes["c"]
        lane.memory.measured(lane.claim, 18_000_000)
        await asyncio.sleep(20.0)
        assert await ask(router, "a") > LOAD_S + ANSWER_S + 4.0  # both caches, and no measurement of them
        assert Engine.freed == Counter(p=1, c=1) and states(router) == "pa"


@pytest.mark.parametrize("gives_back", [True, False])
@in_virtual_time
async def test_cache_of_a_pinned_model_is_freed_for_a_model_that_needs_more_than_the_others_have(
    gives_back: bool,
) -> None:
    async with gateway(30, p=sized(10, pinned=True), a=sized(5), b=sized(20)) as (router, _):
        await ask(router, "p")
        await ask(router, "a")
        lane = router.lanes["p"]
        lane.memory.measured(lane.claim, 15_000_000)
        await asyncio.sleep(20.0)
        waiting = asyncio.create_task(ask(router, "b"))
        await asyncio.sleep(1.5)
        assert Engine.freed == Counter(p=1) and states(router) == "pa"
        if gives_back:
            lane.memory.measured(lane.claim, 10_000_000)
            await waiting
            assert states(router) == "pb"
        else:
            with pytest.raises(ModelNotReady):
                await waiting
            assert states(router) == "pa"


@pytest.mark.parametrize("is_first", [True, False], ids=["first-request", "later-request"])
@in_virtual_time
async def test_idle_model_is_unloaded_while_another_one_leaves_with_a_long_request(*, is_first: bool) -> None:
    long = sized(10, repeat=True, token_s=1.0, context_length=1000)
    async with gateway(20, a=long, b=sized(10), c=sized(10)) as (router, residency):
        await ask(router, "b")
        if not is_first:
            await ask(router, "a", max_tokens=1)
        busy = asyncio.create_task(ask(router, "a", max_tokens=480))
        await asyncio.sleep(LOAD_S + 1.0)
        leaving = asyncio.create_task(residency.unload("a"))
        await asyncio.sleep(1.0)
        assert await ask(router, "c") <= 10.0 + CLOSE_S + LOAD_S + ANSWER_S
        assert not leaving.done() and states(router) == "c"
        await busy
        await leaving


@in_virtual_time
async def test_failure_of_a_decision_is_logged_and_the_next_one_is_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [OSError("broken")] * 2

    def fails_twice(*args: Any) -> list[Claim]:
        if faults:
            raise faults.pop()
        return victims(*args)

    async with gateway(10, a=sized(10), b=sized(10)) as (router, _):
        await ask(router, "a")
        monkeypatch.setattr(manager, "victims", fails_twice)
        async with asyncio.timeout(60.0):
            await ask(router, "b")
    assert caplog.messages.count("the memory manager failed; it tries again") == 2


@pytest.mark.parametrize("seed", range(12))
@in_virtual_time
async def test_storm_over_models_of_many_sizes(seed: int) -> None:
    """The budget holds at each load, no busy model is unloaded, each request has one ending, and nothing is stuck."""
    chance = random.Random(seed)
    models = {
        name: sized(
            chance.choice([5, 10, 20, 30]),
            chance.choice(["start", "demand"]),
            load_s=chance.choice([0.5, 3.0, 20.0]),
            ttft_s=chance.choice([0.1, 1.0]),
            token_s=chance.choice([0.0, 0.5]),
            max_sequences=chance.choice([1, 4]),
            queue=chance.choice([2, 32]),
            fallback=chance.choice([None, "a"]) if name != "a" else None,
            **chance.choice([{"keep_alive": 0.0}, {"keep_alive": 5.0}, {}, {}]),
        )
        for name in "abcde"
    }
    if chance.random() < 0.5:
        models["p"] = sized(10, "start", pinned=True)
    async with gateway(40, seed, **models) as (router, residency):
        Engine.fault_share = chance.choice([0.0, 0.1])
        endings: list[str] = []
        measuring = asyncio.create_task(_measure(router, chance if seed >= 8 else None))

        async def one() -> None:
            limit, keep_alive = chance.choice([None, None, 1.0, 10.0]), chance.choice([None, None, 0.0, 3.0, -1.0])
            deadline = chance.choice([None, None, 5.0])
            generation = request(
                chance.choice(list(models)),
                ttft_timeout_s=limit,
                timeout_s=deadline,
                keep_alive_s=keep_alive,
                client=chance.choice("xyz"),
                max_tokens=4,
            )
            with noted(endings):
                await answer_of(router, generation)

        async def change(verb: str) -> None:
            with suppress(Conflict, ModelNotReady):
                await getattr(residency, verb)(chance.choice(list(models)))

        tasks: list[asyncio.Task[None]] = []
        asks = 0
        for _ in range(80):
            verb = chance.choice(["ask"] * 6 + ["load", "unload", "cancel"])
            if verb == "ask":
                tasks.append(asyncio.create_task(one()))
                await asyncio.sleep(0)
                asks += 1
            elif verb == "cancel" and tasks:
                chance.choice(tasks).cancel()
            elif verb != "cancel":
                tasks.append(asyncio.create_task(change(verb)))
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.1, 1.0, 10.0]))
        async with asyncio.timeout(3000.0):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [each for each in results if each and not isinstance(each, asyncio.CancelledError)] == []
        assert len(endings) == asks and "ok" in endings
        await asyncio.sleep(60.0)
        assert [(lane.running, lane.waiting) for lane in router.status()] == [(0, 0)] * len(models)
        assert not router.replaced
        Engine.fault_share = 0.0
        await asyncio.sleep(60.0)
        for name in models:
            await ask(router, name)
        measuring.cancel()


async def _measure(router: Router, chance: random.Random | None) -> None:
    """As Growth does: KV caches grow while models answer, and are gone when they are freed. Some readings are lost."""
    while chance:
        await asyncio.sleep(2.0)
        for lane in router.lanes.values():
            claim = lane.claim
            if claim.state == "held" and claim.ready_at is not None and not chance.random() < 2 * Engine.fault_share:
                grown = 0 if (claim.cache_freed_at or 0.0) >= claim.last_used_at else chance.randrange(8_000_000)
                lane.memory.measured(claim, claim.need.least_bytes + grown)
