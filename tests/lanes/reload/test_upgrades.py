"""A model moves to a better bundle that is built while it answers."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import pytest

from gateway.config.tables import BreakerConfig, ModelConfig, ScriptedModel
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import BundleError, ConfigError, ModelNotReady
from gateway.lanes.lane import Lane
from gateway.lanes.memory.residency import Residency
from gateway.lanes.reload.reloader import Reloader
from gateway.lanes.reload.upgrades import Upgrades
from gateway.lanes.router import Router
from tests.support.reloading import File
from tests.support.routing import BREAKER, answer_of, model, request
from tests.support.server import config_of


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


class Moving:
    """An upgrade of "main" whose better bundle loads until `may_load` is set."""

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.loading, self.may_load = asyncio.Event(), asyncio.Event()

    def make(self, name: str, config: ModelConfig) -> Lane:
        lane = make_lane(name, config)
        load = lane.load

        async def slow_load() -> str:
            self.loading.set()
            await self.may_load.wait()
            return await load()

        lane.load = slow_load  # type: ignore[method-assign]
        self.lanes.append(lane)
        return lane

    async def until_given_up(self) -> None:
        self.may_load.set()
        await until(lambda: self.lanes[0].status.engine.state == "closed")


@contextlib.asynccontextmanager
async def moving(main: ScriptedModel) -> AsyncIterator[tuple[Router, Moving, Bundles, Reloader, File]]:
    """A reload comes while the better bundle loads."""
    async with served({"main": main, "other": model("other")}) as router:

        async def made(name: str, config: ModelConfig) -> Lane:
            return make_lane(name, config)

        file, upgrade, bundles = File(router.config), Moving(), Bundles(model("better"))
        residency = Residency(router, made)
        reloader = Reloader(router, residency, file, lambda name, table, config: make_lane(name, table))
        async with upgraded(router, bundles, make=upgrade.make):
            await upgrade.loading.wait()
            yield router, upgrade, bundles, reloader, file
        await residency.aclose()


async def test_reload_of_other_keys_lets_the_move_go_on() -> None:
    async with moving(model("old", aliases=("a",))) as (router, upgrade, bundles, reloader, file):
        file.models(main=model("old", aliases=("b",), breaker=BreakerConfig(window=3)), other=model("other"))
        assert (await reloader.reload()).changed == {}
        upgrade.may_load.set()
        await until(lambda: "main moved" in bundles.log)
        assert await answer_of(router, request("b")) == ("main", "better")
        assert router.lanes["main"].breaker.config.window == 3 and router.known("a") is None


@pytest.mark.parametrize("is_removed", [True, False])
async def test_reload_that_removes_or_changes_the_model_ends_its_move(is_removed: bool) -> None:
    async with moving(model("old")) as (router, upgrade, bundles, reloader, file):
        file.models(other=model("other"), **({} if is_removed else {"main": model("changed")}))
        await reloader.reload()
        await upgrade.until_given_up()
        assert list(router.lanes) == (["other"] if is_removed else ["other", "main"])
        assert "main moved" not in bundles.log and not any("failed" in line for line in bundles.log)
        if not is_removed:
            await router.tried()
            assert await answer_of(router, request("main")) == ("main", "changed")
