"""A running gateway gets a new model: its name, its aliases and its lane."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest

from gateway.config.tables import BreakerConfig, ModelConfig, ScriptedModel
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import BundleError, ConfigError, ModelNotFound, ModelNotReady
from gateway.lanes.lane import Lane
from gateway.lanes.memory.residency import Residency
from gateway.lanes.new_models import NewModels, Upgrades
from gateway.lanes.router import Router
from tests.support.routing import BREAKER, answer_of, model, request
from tests.support.server import config_of


class Reads:
    """What each call of `read` finds, one after the other; then nothing. `done` is set by the call after the last."""

    def __init__(self, *found: Mapping[str, ModelConfig] | Exception) -> None:
        self._found = list(found)
        self._loop = asyncio.get_running_loop()
        self.done = asyncio.Event()

    def __call__(self) -> Mapping[str, ModelConfig]:
        if not self._found:
            self._loop.call_soon_threadsafe(self.done.set)
            return {}
        found = self._found.pop(0)
        if isinstance(found, Exception):
            raise found
        return found


def make_lane(name: str, config: ModelConfig) -> Lane:
    return Lane(name, config, ScriptedEngine(name, config), config.breaker or BREAKER)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def served(models: Mapping[str, ScriptedModel]) -> AsyncIterator[Router]:
    config = config_of(models)
    router = Router(config, {name: make_lane(name, model) for name, model in models.items()})
    await router.start()
    await router.tried()
    try:
        yield router
    finally:
        await router.aclose()


async def add(router: Router, reads: Reads, make_lane: Callable[[str, ModelConfig], Lane] = make_lane) -> None:
    task = asyncio.create_task(NewModels(reads, make_lane, lambda seconds: asyncio.sleep(0)).run(router))
    done = asyncio.create_task(reads.done.wait())
    await asyncio.wait([task, done], return_when=asyncio.FIRST_COMPLETED)
    assert not task.done(), "it looks for no more models"
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await router.tried()


async def test_new_model_answers_under_its_names() -> None:
    async with served({"main": model("old")}) as router:
        with pytest.raises(ModelNotFound):
            router.lookup("late")
        await add(router, Reads({}, {"late": model("new", fallback="main", aliases=("gpt-x",), max_tokens=7)}))
        for name in ("late", "gpt-x", "late:background"):
            assert await answer_of(router, request(name)) == ("late", "new")
        assert [info.name for info in router.models()] == ["main", "late"]
        assert router.defaults_for("late").max_tokens == 7 and router.defaults_for("main").max_tokens == 64
        assert await answer_of(router, request("main")) == ("main", "old")


async def test_name_of_another_model_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with served({"main": model("old", aliases=("gpt-x",))}) as router:
        with caplog.at_level(logging.ERROR):
            await add(
                router, Reads({"late": model("new", aliases=("gpt-x",)), "main": model("new"), "ok": model("ok")})
            )
        assert [info.name for info in router.models()] == ["main", "ok"]
        assert "late is not added: gpt-x already names the model main." in caplog.text
        assert await answer_of(router, request("gpt-x")) == ("main", "old")


async def test_failed_read_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    async with served({"main": model("old")}) as router:
        with caplog.at_level(logging.ERROR):
            await add(router, Reads(RuntimeError("disk"), {"late": model("new")}))
        assert "the configuration could not be read again" in caplog.text
        assert await answer_of(router, request("late")) == ("late", "new")


async def test_model_without_a_lane_does_not_keep_others_out(caplog: pytest.LogCaptureFixture) -> None:
    def fails_for_bad(name: str, config: ModelConfig) -> Lane:
        if name == "bad":
            raise OSError(36, "File name too long")
        return make_lane(name, config)

    async with served({"main": model("old")}) as router:
        with caplog.at_level(logging.ERROR):
            await add(router, Reads({"bad": model("x"), "ok": model("ok")}, {"late": model("new")}), fails_for_bad)
        assert [info.name for info in router.models()] == ["main", "ok", "late"]
        assert "bad is not added" in caplog.text


async def test_fallback_that_was_refused_is_left_out() -> None:
    async with served({"main": model("old", aliases=("gpt-x",))}) as router:
        refused, late = model("x", aliases=("gpt-x",)), model("new", fallback="refused")
        await add(router, Reads({"refused": refused, "late": late}))
        assert await answer_of(router, request("late")) == ("late", "new")


class Bundles:
    """BetterBundles of one model, "main". `better`: what each call of `advance` returns or raises."""

    def __init__(self, *better: ModelConfig | Exception | None) -> None:
        self._better = list(better)
        self.log: list[str] = []
        self.moved_error: Exception | None = None
        self.may_end = threading.Event()  # `advance` waits for it
        self.may_end.set()

    def next(self, served: Mapping[str, ModelConfig]) -> str | None:
        return "main" if self._better else None

    def advance(self, name: str, report: Callable[[str], None]) -> ModelConfig | None:
        report(f"{len(self._better)} to go")
        self.log.append("advance")
        self.may_end.wait(60)
        better = self._better.pop(0)
        if isinstance(better, Exception):
            raise better
        return better

    def moved(self, name: str) -> None:
        self.log.append(f"{name} moved")
        if self.moved_error:
            raise self.moved_error

    def failed(self, name: str, reason: str) -> None:
        self.log.append(f"{name} failed: {reason}")

    def stop(self) -> None:
        self.log.append("stop")


@contextlib.asynccontextmanager
async def upgraded(
    router: Router,
    bundles: Bundles,
    sleep: Callable[[float], Awaitable[None]] = lambda seconds: asyncio.sleep(0),
    make: Callable[[str, ModelConfig], Lane] = make_lane,
) -> AsyncIterator[None]:
    task = asyncio.create_task(Upgrades(bundles, make, sleep).run(router))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert bundles.log[-1] == "stop"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_model_moves_to_its_better_bundle_while_a_request_runs() -> None:
    async with served({"main": model("old one", token_s=1e6, breaker=BreakerConfig(enabled=False))}) as router:
        old, bundles = router.lanes["main"], Bundles(model("new"))
        bundles.may_end.clear()
        async with upgraded(router, bundles):
            await until(lambda: "advance" in bundles.log)
            running = router.route(request("main"))
            first = await anext(running)  # the old lane has begun with it
            routed = router.route(request("main"))  # and this one will come to the old lane
            bundles.may_end.set()
            await until(lambda: "main moved" in bundles.log)
            assert old.background == "1 to go" and router.lanes["main"] is not old
            assert await answer_of(router, request("main")) == ("main", "new")
            assert [event async for event in routed]
            assert old.status.engine.state == "ready", "the old engine was closed under a request"
            assert first
            await running.aclose()
            await until(lambda: old.status.engine.state == "closed")
        assert bundles.log == ["advance", "main moved", "stop"]
        assert await answer_of(router, request("main")) == ("main", "new")


async def test_unloaded_model_moves_when_it_is_loaded_again() -> None:
    sleeps: list[float] = []

    async def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        await asyncio.sleep(0)

    async def made(name: str, config: ModelConfig) -> Lane:
        return make_lane(name, config)

    async with served({"main": model("old")}) as router:
        bundles, residency = Bundles(model("new")), Residency(router, made)
        bundles.may_end.clear()
        async with upgraded(router, bundles, sleep):
            await until(lambda: "advance" in bundles.log)
            await residency.unload("main")
            sleeps.clear()
            bundles.may_end.set()
            await until(lambda: len(sleeps) > 20)  # it looks whether the model is loaded
            assert bundles.log == ["advance"] and router.status()[0].engine.state == "unloaded"
            assert router.status()[0].background == "1 to go"
            await residency.load("main")
            await until(lambda: "main moved" in bundles.log)
        assert await answer_of(router, request("main")) == ("main", "new")


async def test_model_that_is_unloaded_while_its_better_bundle_loads_stays_unloaded() -> None:
    lanes: list[Lane] = []
    loading, may_load = asyncio.Event(), asyncio.Event()

    def make(name: str, config: ModelConfig) -> Lane:
        lane = make_lane(name, config)
        load = lane.load

        async def slow_load() -> str:
            loading.set()
            await may_load.wait()
            return await load()

        lane.load = slow_load  # type: ignore[method-assign]
        lanes.append(lane)
        return lane

    async def made(name: str, config: ModelConfig) -> Lane:
        return make_lane(name, config)

    async with served({"main": model("old")}) as router:
        bundles, residency = Bundles(model("new")), Residency(router, made)
        async with upgraded(router, bundles, make=make):
            await loading.wait()
            await residency.unload("main")
            may_load.set()
            await until(lambda: lanes[0].status.engine.state == "closed")
            assert router.status()[0].engine.state == "unloaded" and bundles.log == ["advance"]
            await residency.load("main")
            await until(lambda: "main moved" in bundles.log)
        assert await answer_of(router, request("main")) == ("main", "new")


async def test_bundle_that_does_not_load_leaves_the_model_as_it_is() -> None:
    async with served({"main": model("old")}) as router:
        bundles = Bundles(model("new", load_error="The driver refuses it."))
        async with upgraded(router, bundles):
            await until(lambda: len(bundles.log) > 1)
        assert bundles.log[:2] == ["advance", "main failed: The driver refuses it."]
        assert await answer_of(router, request("main")) == ("main", "old")
        assert router.status()[0].background == ""


async def test_build_that_fails_is_reported_once() -> None:
    async with served({"main": model("old")}) as router:
        bundles = Bundles(BundleError("Part 2 is refused."))
        async with upgraded(router, bundles):
            await until(lambda: len(bundles.log) > 1)
        assert bundles.log == ["advance", "main failed: Part 2 is refused.", "stop"]


async def test_nothing_is_built_while_a_model_answers() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    async with served({"main": model("a word", token_s=1e6, breaker=BreakerConfig(enabled=False))}) as router:
        running, bundles = router.route(request("main")), Bundles(None)
        await anext(running)
        async with upgraded(router, bundles, sleep):
            await until(lambda: len(slept) > 50)
            assert bundles.log == []
            await running.aclose()
            await until(lambda: bundles.log == ["advance"])


async def test_move_that_cannot_be_noted_is_a_move(caplog: pytest.LogCaptureFixture) -> None:
    async with served({"main": model("old", aliases=("gpt-x",))}) as router:
        old, bundles = router.lanes["main"], Bundles(model("new", aliases=("gpt-y",)))
        bundles.moved_error = ConfigError("config.toml: not valid TOML")
        async with upgraded(router, bundles):
            await until(lambda: old.status.engine.state == "closed")
        assert bundles.log == ["advance", "main moved", "stop"]
        assert "could not be noted" in caplog.text
        assert await answer_of(router, request("gpt-x")) == ("main", "new")
        assert router.models()[0].aliases == ("gpt-x",), "the list has a name that leads to no model"


async def test_end_of_the_gateway_ends_requests_of_a_replaced_lane() -> None:
    async with served({"main": model("old one", token_s=1e6, breaker=BreakerConfig(enabled=False))}) as router:
        old, bundles = router.lanes["main"], Bundles(model("new"))
        bundles.may_end.clear()
        async with upgraded(router, bundles):
            await until(lambda: "advance" in bundles.log)
            running = router.route(request("main"))
            await anext(running)
            bundles.may_end.set()
            await until(lambda: "main moved" in bundles.log)
        await router.aclose()
        assert old.status.engine.state == "closed"
        with pytest.raises(ModelNotReady, match="shut down"):
            [event async for event in running]
        await running.aclose()
