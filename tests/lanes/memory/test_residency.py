"""Models are unloaded and loaded again: who waits, who is refused, and what is left. In virtual time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, ClassVar

import pytest

from gateway.config.tables import BreakerConfig, Config, ModelConfig, ScriptedModel, UpstreamModel
from gateway.engines.factory import make_engine
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import (
    BreakerOpen,
    BundleError,
    Conflict,
    DeadlineExceeded,
    FirstTokenTooLate,
    GatewayError,
    ModelNotFound,
    ModelNotReady,
    QueueFull,
)
from gateway.lanes.lane import Lane
from gateway.lanes.memory.residency import Residency
from gateway.lanes.router import Router
from tests.support.routing import answer_of, model, noted, request
from tests.support.virtual_time import in_virtual_time, now

LOAD_S = 5.0


class Engine(ScriptedEngine):
    """Counts the engines of its model in memory: from the begin of the load to the end of `aclose`."""

    in_memory: ClassVar[Counter[str]] = Counter()
    load_faults: ClassVar[int] = 0  # the number of loads that fail, of the next engines

    def __init__(self, name: str, table: ScriptedModel) -> None:
        super().__init__(name, table, clock=now)
        self._is_counted = False

    async def start(self) -> None:
        assert not Engine.in_memory[self._name], "two engines of one model are in memory"
        Engine.in_memory[self._name] += 1
        self._is_counted = True
        if Engine.load_faults:
            Engine.load_faults -= 1
            Engine.in_memory[self._name] -= 1
            self._is_counted = False
            raise BundleError("model.onnx is missing")
        await super().start()

    async def aclose(self) -> None:
        await super().aclose()
        await asyncio.sleep(0.5)  # a worker needs some time to end
        Engine.in_memory[self._name] -= self._is_counted
        self._is_counted = False


@asynccontextmanager
async def residency(**models: ModelConfig) -> AsyncIterator[tuple[Router, Residency]]:
    Engine.in_memory, Engine.load_faults = Counter(), 0
    config = Config(models=models, default_model=next(iter(models)))

    def lane(name: str, table: ModelConfig) -> Lane:
        engine = (
            Engine(name, table) if isinstance(table, ScriptedModel) else make_engine(name, table, config.models_dir)
        )
        return Lane(name, table, engine, table.breaker or config.breaker, clock=now)

    async def make_lane(name: str, table: ModelConfig) -> Lane:
        await asyncio.sleep(0.1)
        return lane(name, table)

    router = Router(config, {name: lane(name, table) for name, table in models.items()}, now)
    made = Residency(router, make_lane)
    await router.start()
    await router.tried()
    try:
        yield router, made
    finally:
        await made.aclose()
        await router.aclose()
        assert not +Engine.in_memory, "an engine is left"


def slow(reply: str = "fine", **fields: Any) -> ScriptedModel:
    """A model that loads in 5 s and answers in 10 s."""
    return model(reply, load_s=LOAD_S, ttft_s=10.0, **fields)


def requested(router: Router, **fields: Any) -> asyncio.Task[tuple[str, str]]:
    return asyncio.create_task(answer_of(router, request(**fields)))


@in_virtual_time
async def test_unloaded_model_is_loaded_by_the_next_request() -> None:
    async with residency(main=slow()) as (router, models):
        before = router.status()[0]
        status = await models.unload("main")
        assert router.lanes["main"]._gauges().ready  # it is no alarm
        assert (status.engine.state, status.is_ready, status.loads_on_demand) == ("unloaded", True, True)
        assert status.expected_wait_s == pytest.approx(LOAD_S)
        assert status.engine.context_length == before.engine.context_length
        assert not +Engine.in_memory
        start = now()
        assert await answer_of(router, request()) == ("main", "fine")
        assert now() - start == pytest.approx(LOAD_S + 10.0)
        assert router.status()[0].engine.state == "ready" and not router.status()[0].loads_on_demand


@in_virtual_time
async def test_load_returns_when_the_model_is_ready() -> None:
    async with residency(main=slow()) as (_, models):
        await models.unload("main")
        start = now()
        loads = [await asyncio.gather(models.load("main"), models.load("main")), [await models.load("main")]]
        assert [status.engine.state for each in loads for status in each] == ["ready"] * 3
        assert now() - start == pytest.approx(LOAD_S)


@in_virtual_time
async def test_unload_waits_for_running_and_queued_requests_and_later_ones_load_again() -> None:
    async with residency(main=slow(max_sequences=1)) as (router, models):
        running, queued = requested(router), requested(router)
        await asyncio.sleep(1.0)
        unload = asyncio.create_task(models.unload("main"))
        await asyncio.sleep(1.0)
        later = [requested(router) for _ in range(3)]
        await asyncio.sleep(1.0)
        assert router.status()[0].engine.state == "loading"
        assert router.status()[0].engine.detail == "requests that came before are answered first"
        await asyncio.gather(running, queued)
        assert now() == pytest.approx(LOAD_S + 20.0) and not unload.done()
        await unload
        assert now() == pytest.approx(LOAD_S + 20.5)
        assert await asyncio.gather(*later) == [("main", "fine")] * 3
        assert now() == pytest.approx(LOAD_S + 20.5 + LOAD_S + 30.0)


@in_virtual_time
async def test_unload_during_a_load_without_requests_ends_the_load() -> None:
    async with residency(main=slow()) as (router, models):
        await models.unload("main")
        load = asyncio.create_task(models.load("main"))
        await asyncio.sleep(1.0)
        assert (await models.unload("main")).engine.state == "unloaded"
        with pytest.raises(Conflict, match="main was unloaded before it was ready"):
            await load
        assert now() < LOAD_S + 3.0 and not +Engine.in_memory
        assert await answer_of(router, request()) == ("main", "fine")


@in_virtual_time
async def test_unload_during_a_load_for_a_request_lets_it_be_answered() -> None:
    async with residency(main=slow()) as (router, models):
        await models.unload("main")
        waiting = requested(router)
        await asyncio.sleep(1.0)
        assert (await models.unload("main")).engine.state == "unloaded"
        assert waiting.done() and await waiting == ("main", "fine")


@in_virtual_time
async def test_model_that_never_became_ready_can_be_unloaded() -> None:
    async with residency(main=model(load_error="no file")) as (router, models):
        assert router.status()[0].engine.state == "failed"
        assert (await models.unload("main")).engine.state == "unloaded"
        await asyncio.sleep(100.0)  # it is not tried again
        assert not +Engine.in_memory
        with pytest.raises(ModelNotReady, match="main could not be loaded: no file"):
            await models.load("main")


@in_virtual_time
async def test_load_between_two_attempts_tries_at_once() -> None:
    async with residency(main=model(load_s=LOAD_S)) as (_, models):
        await models.unload("main")
        Engine.load_faults = 5
        for _ in range(5):
            with pytest.raises(ModelNotReady, match=r"model\.onnx is missing"):
                await models.load("main")
        start = now()
        assert (await models.load("main")).is_ready and now() - start == pytest.approx(LOAD_S)


@in_virtual_time
async def test_load_during_an_attempt_waits_for_its_end() -> None:
    async with residency(main=model(load_s=LOAD_S)) as (_, models):
        await models.unload("main")
        Engine.load_faults = 1
        with pytest.raises(ModelNotReady):
            await models.load("main")
        await asyncio.sleep(1.0)
        assert (await models.load("main")).is_ready


@in_virtual_time
async def test_load_of_an_engine_that_restarts_itself_is_refused_at_once() -> None:
    """No attempt follows, so nothing would end the wait for one."""
    async with residency(main=model()) as (router, models):
        engine = router.lanes["main"].engine
        assert isinstance(engine, Engine)
        engine._restarts, engine._ready_at = 1, now() + 5.0
        with pytest.raises(ModelNotReady, match="a device call hung"):
            await models.load("main")


@in_virtual_time
async def test_requests_that_wait_get_the_reason_of_a_failed_load_or_the_fallback() -> None:
    async with residency(main=slow(fallback="other"), alone=slow(), other=model("from other")) as (router, models):
        await asyncio.gather(models.unload("main"), models.unload("alone"))
        Engine.load_faults = 2
        assert await answer_of(router, request("main")) == ("other", "from other")
        with pytest.raises(ModelNotReady, match=r"alone could not be loaded: model\.onnx is missing"):
            await answer_of(router, request("alone"))
        await asyncio.sleep(1.0 + LOAD_S)  # the loader tries again
        assert await answer_of(router, request("alone")) == ("alone", "fine")


@in_virtual_time
async def test_limit_of_first_token_decides_between_wait_fallback_and_refusal() -> None:
    async with residency(main=slow(fallback="other"), alone=slow(), other=model("from other")) as (router, models):
        for name in ("main", "alone"):
            await models.unload(name)
        start = now()
        assert await answer_of(router, request("main", ttft_timeout_s=1.0)) == ("other", "from other")
        with pytest.raises(ModelNotReady) as refused:
            await answer_of(router, request("alone", ttft_timeout_s=4.9))
        assert now() - start < 0.1
        assert refused.value.message == (
            "alone is being loaded, which takes about 5.0 s more; the limit for the first token is 4.9 s."
        )
        assert refused.value.retry_after_s == pytest.approx(LOAD_S)
        await asyncio.sleep(3.0)  # the refused request began the load
        with pytest.raises(ModelNotReady, match=r"about 2\.0 s more"):
            await answer_of(router, request("alone", ttft_timeout_s=1.0))
        assert await answer_of(router, request("alone", ttft_timeout_s=20.0)) == ("alone", "fine")


@in_virtual_time
async def test_request_waits_for_a_load_no_longer_than_its_deadline() -> None:
    async with residency(main=slow()) as (router, models):
        await models.unload("main")
        with pytest.raises(DeadlineExceeded):
            await answer_of(router, request(timeout_s=2.0))
        assert router.status()[0].running == 0
        await asyncio.sleep(LOAD_S)
        assert router.status()[0].engine.state == "ready"


@in_virtual_time
async def test_breaker_and_forecast_are_those_of_the_new_load() -> None:
    breaker = BreakerConfig(latency_ms=1.0, min_calls=1, probe_itself=False, open_s=1000.0)
    async with residency(main=slow("fine and good", breaker=breaker, token_s=0.1)) as (router, models):
        await answer_of(router, request())
        assert router.status()[0].breaker.state == "open" and router.status()[0].tokens_per_s is not None
        await models.unload("main")
        assert router.status()[0].breaker.state == "closed" and router.status()[0].tokens_per_s is None
        assert await answer_of(router, request()) == ("main", "fine and good")
        assert router.status()[0].breaker.state == "open"


@in_virtual_time
async def test_tokenizer_request_loads_the_model_and_delays_an_unload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "text_tools", object())
    async with residency(main=slow()) as (router, models):
        await models.unload("main")
        async with router.tools("main", may_load=False):
            assert router.status()[0].engine.state == "unloaded"
        async with router.tools("main") as tools:
            assert tools is Engine.text_tools and router.status()[0].engine.state == "ready"
            unload = asyncio.create_task(models.unload("main"))
            await asyncio.sleep(100.0)
            assert not unload.done() and Engine.in_memory["main"]
        assert (await unload).engine.state == "unloaded"


@in_virtual_time
async def test_names_that_cannot_be_unloaded() -> None:
    upstream = UpstreamModel(url="http://127.0.0.1:1/v1")
    async with residency(main=model(aliases=("gpt-4o",)), other=upstream) as (_, models):
        with pytest.raises(Conflict, match="other is on another server"):
            await models.unload("other")
        assert (await models.load("other")).engine.state == "ready"
        with pytest.raises(ModelNotFound, match="did you mean 'main'"):  # also with a default model
            await models.unload("mian")
        with pytest.raises(ModelNotFound, match="there is main, other"):
            await models.load("something else")
        assert (await models.unload("GPT-4o:latest")).model == "main"


@in_virtual_time
async def test_end_of_the_gateway_ends_waiting_requests_and_unloads() -> None:
    async with residency(main=slow()) as (router, models):
        running = requested(router)
        await asyncio.sleep(1.0)
        unload = asyncio.create_task(models.unload("main"))
        await asyncio.sleep(1.0)
        waiting = requested(router)
        await asyncio.sleep(1.0)
        await asyncio.gather(models.aclose(), router.aclose())
        for task in (running, waiting):
            with pytest.raises(GatewayError):
                await task
        await unload


@pytest.mark.parametrize("seed", range(16))
@in_virtual_time
async def test_storm_of_loads_unloads_and_requests(seed: int) -> None:
    """Every request has exactly one ending, no two engines of a model are in memory, and no lane is left."""
    chance = random.Random(seed)
    main = model(
        max_sequences=2, queue=3, load_s=LOAD_S, ttft_s=1.0, token_s=0.3, fallback=chance.choice([None, "other"])
    )
    async with residency(main=main, other=model(load_s=1.0, ttft_s=0.2)) as (router, models):
        endings: list[str] = []

        async def ask() -> None:
            limit = chance.choice([None, None, 0.5, 3.0, 8.0, 30.0])
            generation = request(
                chance.choice(["main", "other"]), ttft_timeout_s=limit, client=chance.choice("abc"), max_tokens=5
            )
            with noted(endings):
                await answer_of(router, generation)

        async def change(verb: str) -> None:
            with suppress(Conflict):
                await getattr(models, verb)(chance.choice(["main", "main", "other"]))

        tasks: list[asyncio.Task[None]] = []
        asks = 0
        for _ in range(60):
            verb = chance.choice(["ask", "ask", "ask", "load", "unload", "cancel"])
            if verb == "ask":
                tasks.append(asyncio.create_task(ask()))
                await asyncio.sleep(0)  # a task that is cancelled before its first step is no request
                asks += 1
            elif verb == "cancel" and tasks:
                chance.choice(tasks).cancel()
            elif verb != "cancel":
                tasks.append(asyncio.create_task(change(verb)))
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.05, 0.3, 1.0, 4.0]))
        async with asyncio.timeout(1000.0):
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [each for each in results if each and not isinstance(each, asyncio.CancelledError)] == []
        assert len(endings) == asks
        refusals = {
            error.code for error in (ModelNotReady, FirstTokenTooLate, QueueFull, DeadlineExceeded, BreakerOpen)
        }
        assert set(endings) <= {"ok", "cancelled", *refusals} and "ok" in endings
        await asyncio.sleep(10.0)
        assert [(lane.running, lane.waiting) for lane in router.status()] == [(0, 0), (0, 0)]
        assert not router.replaced
        for lane in router.status():
            assert Engine.in_memory[lane.model] == (lane.engine.state == "ready"), lane
        for name in ("main", "other"):
            assert (await models.unload(name)).engine.state == "unloaded"
        assert not +Engine.in_memory
        assert await answer_of(router, request("main")) == ("main", "fine")
