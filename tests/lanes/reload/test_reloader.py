"""A running gateway gets another configuration: what changes, who waits, and what is left. In virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from gateway.config.tables import BreakerConfig, Defaults, ScriptedModel, ServerConfig
from gateway.errors import ConfigError, Conflict, GatewayError, ModelNotFound, ModelNotReady
from tests.support.reloading import LOAD_S, Engine, Gateway, gateway, slow
from tests.support.routing import answer_of, model, noted, request
from tests.support.virtual_time import in_virtual_time, now

T = TypeVar("T")


def engine_of(made: Gateway, name: str = "main") -> Engine:
    engine = made.router.lanes[name].engine
    assert isinstance(engine, Engine)
    return engine


@in_virtual_time
async def test_models_are_added_removed_and_changed_one_by_one() -> None:
    async with gateway(main=model("old"), other=model("other"), gone=model("gone")) as made:
        kept = engine_of(made, "other")
        made.file.models(late=model("late", aliases=("gpt-x",)), main=model("new"), other=model("other"))
        reloaded = await made.reloader.reload()
        assert (reloaded.added, reloaded.removed, reloaded.changed) == (["late"], ["gone"], {"main": ["script"]})
        assert (reloaded.applied, reloaded.restart) == ([], [])
        assert await answer_of(made.router, request("main")) == ("main", "new")
        assert await answer_of(made.router, request("gpt-x")) == ("late", "late")
        assert [info.name for info in made.router.models()] == ["late", "main", "other"]
        assert engine_of(made, "other") is kept and kept.status.state == "ready"
        with pytest.raises(ModelNotFound, match=r"'gome' does not exist; did you mean 'main'\?|there is"):
            made.router.lookup("gome")
        await asyncio.sleep(1.0)
        assert not made.router.replaced
        text = made.metrics.render().decode()
        assert 'gateway_model_ready{model="late"} 1.0' in text and '{model="gone"}' not in text


@in_virtual_time
async def test_same_file_changes_nothing() -> None:
    async with gateway(main=slow()) as made:
        before = made.router.lanes["main"]
        reloaded = await made.reloader.reload()
        assert reloaded.lines == ["nothing has changed"] and made.router.lanes["main"] is before


@in_virtual_time
async def test_keys_that_need_no_other_engine_apply_at_once() -> None:
    """The engine stays, and so do requests, queue and measurements."""
    async with gateway(main=slow(aliases=("a",), queue=5), other=model("other")) as made:
        kept, running = engine_of(made), made.ask()
        await asyncio.sleep(1.0)
        main = slow(aliases=("b",), queue=0, fallback="other", max_tokens=7, temperature=0.5)
        made.file.write(
            models={"main": main, "other": model("other")},
            default_model="other",
            defaults=Defaults(max_tokens=9, top_p=0.25),
            server=replace(made.file.config.server, timeout_s=77.0, api_keys={"anna": "k" * 20}),
        )
        reloaded = await made.reloader.reload()
        assert sorted(reloaded.applied) == [
            "default_model",
            "defaults.max_tokens",
            "defaults.top_p",
            "models.main.aliases",
            "models.main.fallback",
            "models.main.max_tokens",
            "models.main.queue",
            "models.main.temperature",
            "server.api_keys",
            "server.timeout_s",
        ]
        assert reloaded.changed == {} and engine_of(made) is kept and kept.status.state == "ready"
        assert made.router.known("a") is None and made.router.known("b") == "main"
        assert made.router.lookup("unknown").model == "other"
        defaults = made.router.defaults_for("b")
        assert (defaults.max_tokens, defaults.temperature, defaults.top_p) == (7, 0.5, 0.25)
        assert made.router.defaults_for("other").max_tokens == 9
        assert made.applied[-1].server.timeout_s == 77.0
        full = [made.ask() for _ in range(4)]  # three slots are free, and no position in the queue
        assert sorted(await asyncio.gather(*full)) == [("main", "fine")] * 3 + [("other", "other")]
        assert await running == ("main", "fine")


@in_virtual_time
async def test_shorter_queue_keeps_the_requests_that_wait() -> None:
    async with gateway(main=slow(queue=5, max_sequences=1)) as made:
        tasks = [made.ask(client="anna") for _ in range(5)]
        await asyncio.sleep(1.0)
        made.file.models(main=slow(queue=2, max_sequences=1))
        await made.reloader.reload()
        with pytest.raises(GatewayError, match="its queue is full"):
            await made.ask(client="anna")
        assert await asyncio.gather(*tasks) == [("main", "fine")] * 5


@in_virtual_time
async def test_open_breaker_begins_again_with_its_new_configuration() -> None:
    open_at_once = BreakerConfig(latency_ms=1.0, min_calls=1, probe_itself=False, open_s=1000.0)
    async with gateway({"breaker": open_at_once}, main=model("fine", ttft_s=1.0), own=slow()) as made:
        await answer_of(made.router, request())
        breaker = made.router.lanes["main"].breaker
        assert breaker.state == "open"
        made.file.models(main=model("fine", ttft_s=1.0, aliases=("a",)), own=slow())
        await made.reloader.reload()
        assert breaker.state == "open", "a reload of other keys has closed it"
        made.file.write(breaker=replace(open_at_once, latency_ms=1e6, window=3))
        assert "breaker.window" in (await made.reloader.reload()).applied
        assert breaker.state == "closed" and made.router.lanes["main"].breaker is breaker
        assert not made.router.lanes["own"].breaker.config.enabled
        for _ in range(5):
            await answer_of(made.router, request())
        assert breaker.verdict == (0, 3)


@in_virtual_time
async def test_changed_model_answers_its_requests_before_its_new_engine_loads() -> None:
    async with gateway(main=slow("old", max_sequences=1)) as made:
        running, queued = made.ask(), made.ask()
        await asyncio.sleep(1.0)
        made.file.models(main=slow("new", max_sequences=1))
        await made.reloader.reload()
        later = made.ask()
        with pytest.raises(ModelNotReady):  # the forecast knows both
            await answer_of(made.router, request(ttft_timeout_s=1.0))
        assert await asyncio.gather(running, queued) == [("main", "old")] * 2
        assert now() < LOAD_S + 21.0
        assert await later == ("main", "new")
        assert now() == pytest.approx(LOAD_S + 20.5 + LOAD_S + 10.0, abs=1.0)


@in_virtual_time
async def test_changed_model_loads_without_a_request_unless_it_was_unloaded() -> None:
    async with gateway(main=slow("old"), resting=slow("old")) as made:
        await made.residency.unload("resting")
        made.file.models(main=slow("new"), resting=slow("new"))
        await made.reloader.reload()
        await asyncio.sleep(LOAD_S + 1.0)
        assert [lane.engine.state for lane in made.router.status()] == ["ready", "unloaded"]
        assert await answer_of(made.router, request("resting")) == ("resting", "new")


@in_virtual_time
async def test_model_that_is_no_longer_loaded_on_demand_loads_at_once() -> None:
    resting = {name: slow("old", load="demand") for name in ("main", "other")}
    async with gateway(**resting) as made:
        made.file.models(main=slow("old"), other=slow("new"))
        await made.reloader.reload()
        await asyncio.sleep(LOAD_S + 1.0)
        assert [lane.engine.state for lane in made.router.status()] == ["ready", "ready"]


@in_virtual_time
async def test_removed_model_answers_what_it_has_accepted() -> None:
    async with gateway(main=slow(fallback="other"), other=model("other"), gone=slow("gone", max_sequences=1)) as made:
        running, queued = made.ask("gone"), made.ask("gone")
        await asyncio.sleep(1.0)
        routed = made.router.route(request("gone"))  # it has found the lane, and not begun
        made.file.models(main=slow(), other=model("other"))
        await made.reloader.reload()
        with pytest.raises(ModelNotFound, match="does not exist any more"):
            await routed.open()
        await routed.aclose()
        with pytest.raises(ModelNotFound, match="there is main, other"):
            made.router.lookup("gone")
        assert Engine.in_memory["gone"]
        assert await asyncio.gather(running, queued) == [("gone", "gone")] * 2
        await asyncio.sleep(1.0)
        assert not Engine.in_memory["gone"] and not made.router.replaced


@in_virtual_time
async def test_removed_fallback_is_passed_over() -> None:
    async with gateway(main=slow(fallback="gone", max_sequences=1, queue=0), gone=model("gone")) as made:
        running = made.ask()
        await asyncio.sleep(1.0)
        routed = made.router.route(request("main"))
        made.file.models(main=slow(max_sequences=1, queue=0))
        await made.reloader.reload()
        with pytest.raises(GatewayError, match="its queue is full"):
            await routed.open()
        await routed.aclose()
        assert await running == ("main", "fine")


@in_virtual_time
async def test_renamed_model_gets_the_memory_of_the_old_name() -> None:
    """The same bundle is in memory once."""
    async with gateway(main=slow()) as made:

        class Bundle(ScriptedModel, frozen=True):  # a scripted model has no path
            path: str = "x"

        def table(reply: str) -> Bundle:
            return Bundle(script=slow(reply).script)

        made.file.models(old=table("old"))
        await made.reloader.reload()
        await asyncio.sleep(20.0)
        running = made.ask("old")
        await asyncio.sleep(1.0)
        made.file.models(new=table("old"))
        reloaded = await made.reloader.reload()
        assert (reloaded.added, reloaded.removed) == (["new"], ["old"])
        later = made.ask("new")
        await asyncio.sleep(1.0)
        assert not Engine.in_memory["new"] and Engine.in_memory["old"]
        assert await running == ("old", "old") and await later == ("new", "old")
        assert not Engine.in_memory["old"]


@pytest.mark.parametrize("kind", ["mistake", "no bundle", "no lane"])
@in_virtual_time
async def test_mistake_keeps_the_whole_configuration(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(main=model("old"), gone=model("gone")) as made:
        before = dict(made.router.lanes)
        bad = model("bad", dialect="fails") if kind == "no lane" else model("bad")
        made.file.models(first=model("first"), main=model("new"), bad=bad)
        made.file.write(default_model="first")
        if kind == "mistake":
            made.file.fault = ConfigError("config.toml: line 3: expected `key = value`, or a [table]")
        if kind == "no bundle":
            made.file.unbuilt.add("bad")
        with pytest.raises(GatewayError) as refused:
            await made.reloader.reload()
        reasons = {"mistake": "line 3", "no bundle": "bad: It has no bundle yet.", "no lane": "bad: OSError: disk"}
        assert reasons[kind] in refused.value.message and refused.value.message in caplog.text
        assert made.router.lanes == before and made.applied == []
        assert made.router.config.default_model is None and not made.router.replaced
        assert await answer_of(made.router, request("main")) == ("main", "old")
        made.file.fault = None
        made.file.unbuilt.clear()
        made.file.models(main=model("new"))
        made.file.write(default_model=None)
        assert (await made.reloader.reload()).changed == {"main": ["script"]}


@in_virtual_time
async def test_model_that_does_not_load_is_a_failed_model_and_the_others_apply() -> None:
    async with gateway(main=model("old")) as made:
        made.file.models(main=model("new"), bad=model(load_error="no file"))
        await made.reloader.reload()
        assert await answer_of(made.router, request("main")) == ("main", "new")
        assert {lane.model: lane.engine.state for lane in made.router.status()} == {"main": "ready", "bad": "failed"}
        made.file.models(main=model("new"), bad=model("good"))
        await made.reloader.reload()
        assert await answer_of(made.router, request("bad")) == ("bad", "good")


@in_virtual_time
async def test_keys_that_need_a_restart_are_named_until_it() -> None:
    async with gateway(main=model("fine")) as made:
        made.file.write(server=ServerConfig(port=1, host="0.0.0.0", insecure=True, ping_s=3.0))
        reloaded = await made.reloader.reload()
        assert reloaded.restart == ["server.host", "server.port"]
        assert (made.router.config.server.port, made.router.config.server.ping_s) == (0, 3.0)
        assert (await made.reloader.reload()).lines == ["needs a restart: server.host, server.port"]


@in_virtual_time
async def test_two_reloads_at_once_and_reloads_during_loads() -> None:
    """The last file counts. A model that was never ready lets the next one load at once."""
    async with gateway(main=slow("one")) as made:
        made.file.models(main=slow("two"), more=model(), most=model())  # which takes longer than the next reload
        both = [asyncio.create_task(made.reloader.reload())]
        await asyncio.sleep(0.15)  # it has read the file
        made.file.models(main=slow("one"))
        both.append(asyncio.create_task(made.reloader.reload()))
        assert [(await each).changed for each in both] == [{"main": ["script"]}] * 2
        made.file.models(main=slow("two"), late=slow("late"))
        first = asyncio.create_task(made.reloader.reload())
        await asyncio.sleep(0.15)  # it has read the file
        made.file.models(main=slow("one"))
        await asyncio.gather(first, made.reloader.reload())
        made.file.models(main=slow("three"))
        await made.reloader.reload()
        await asyncio.sleep(1.0)
        waiting = made.ask()  # for the load of the third
        await asyncio.sleep(1.0)
        made.file.models(main=slow("four"))
        await made.reloader.reload()
        assert await waiting == ("main", "three")
        assert await answer_of(made.router, request()) == ("main", "four")
        await asyncio.sleep(1.0)
        assert not made.router.replaced and not Engine.in_memory["late"]


@in_virtual_time
async def test_end_of_the_gateway_during_a_reload() -> None:
    async with gateway(main=slow("old")) as made:
        running = made.ask()
        made.file.models(main=slow("new"), late=slow())
        made.reloader.begin()
        reload = asyncio.create_task(made.reloader.reload())
        await asyncio.sleep(0.15)
        await made.reloader.aclose()
        await asyncio.gather(made.residency.aclose(), made.router.aclose())
        with pytest.raises(Conflict, match="The gateway ends"):
            await reload
        with pytest.raises(GatewayError):
            await running
        assert list(made.router.lanes) == ["main"]


@in_virtual_time
async def test_unload_while_the_model_is_changed_or_removed() -> None:
    async with gateway(main=slow("old", aliases=("a",)), gone=slow()) as made:
        unloads = [asyncio.create_task(made.residency.unload(name)) for name in ("main", "gone")]
        await asyncio.sleep(0.05)  # the lanes of the unloaded models are made
        made.file.models(main=slow("old", aliases=("b",)))
        made.reloader._in_thread = at_once
        await made.reloader.reload()
        assert (await unloads[0]).engine.state == "unloaded"
        with pytest.raises(ModelNotFound):
            await unloads[1]
        assert made.router.lanes["main"].config.aliases == ("b",)
        assert await answer_of(made.router, request("b")) == ("main", "old")


@in_virtual_time
async def test_model_that_is_removed_while_it_is_unloaded_for_another(caplog: pytest.LogCaptureFixture) -> None:
    async with gateway(main=slow(), gone=slow()) as made:
        running, claim = made.ask("gone"), made.router.lanes["gone"].claim
        await asyncio.sleep(1.0)
        release = asyncio.create_task(made.residency.release(claim))
        await asyncio.sleep(0.05)  # its new lane is made
        made.file.models(main=slow())
        made.reloader._in_thread = at_once
        await made.reloader.reload()
        await release
        assert claim.is_leaving and not claim.pinned and "cannot be unloaded" not in caplog.text
        assert await running == ("gone", "fine")


async def at_once(function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    return function(*args, **kwargs)


@pytest.mark.parametrize("seed", range(12))
@in_virtual_time
async def test_storm_of_edits_and_requests(seed: int) -> None:
    """Every request has one ending, by a model that it named or a fallback, in a version of the file of its time."""
    chance = random.Random(seed)
    names = ["a", "b", "c", "d"]
    version = 0

    def table(others: list[str]) -> ScriptedModel:
        fallback = chance.choice([None, *others]) if others else None
        reply = f"v{version if chance.random() < 0.5 else 0}"
        return model(
            reply,
            load_s=chance.choice([0.0, LOAD_S]),
            ttft_s=chance.choice([0.2, 3.0]),
            load_error=chance.choice(["", "", "", "", "no file"]),
            fallback=fallback,
            max_sequences=chance.choice([1, 2]),
            queue=chance.choice([0, 2, 9]),
            breaker=chance.choice([None, BreakerConfig(enabled=False)]),
        )

    def edit(made: Gateway) -> None:
        nonlocal version
        version += 1
        kept = [name for name in names if chance.random() < 0.7] or ["a"]
        models = {}
        for at, name in enumerate(kept):
            old = made.file.config.models.get(name)
            keep = old is not None and chance.random() < 0.5 and old.fallback in (None, *kept[:at])
            models[name] = old if keep else table(kept[:at])
        made.file.models(**models)  # type: ignore[arg-type]
        made.file.unbuilt = {chance.choice(names)} if chance.random() < 0.2 else set()
        made.file.fault = ConfigError("a mistake") if chance.random() < 0.1 else None

    async with gateway(**{name: table([]) for name in names}) as made:
        endings: list[str] = []

        async def ask() -> None:
            name, served = chance.choice(names), set(made.router.lanes)
            with noted(endings):
                await answer_of(made.router, request(name, client=chance.choice("xyz"), max_tokens=4))
                assert name in served, "a removed model has answered"

        async def reload() -> None:
            with suppress(GatewayError):
                await made.reloader.reload()

        async def move(verb: str) -> None:
            with suppress(GatewayError):
                await getattr(made.residency, verb)(chance.choice(names))

        tasks: list[asyncio.Task[None]] = []
        asks = 0
        for _ in range(80):
            match chance.choice(["ask", "ask", "ask", "reload", "edit", "unload", "load", "cancel"]):
                case "ask":
                    tasks.append(asyncio.create_task(ask()))
                    await asyncio.sleep(0)
                    asks += 1
                case "edit":
                    edit(made)
                    tasks.append(asyncio.create_task(reload()))
                case "reload":
                    tasks.append(asyncio.create_task(reload()))
                case "cancel" if tasks:
                    chance.choice(tasks).cancel()
                case "load" | "unload" as verb:
                    tasks.append(asyncio.create_task(move(verb)))
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.05, 0.3, 1.0, 4.0]))
        made.file.fault = None
        made.file.unbuilt = set()
        async with asyncio.timeout(2000.0):
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await made.reloader.reload()
        assert [each for each in results if each and not isinstance(each, asyncio.CancelledError)] == []
        assert len(endings) == asks and "ok" in endings
        await asyncio.sleep(700.0)  # `timeout_s`
        assert not made.router.replaced
        assert list(made.router.lanes) == list(made.file.config.models)
        assert made.reloader.running == made.file.config
        for name, lane in made.router.lanes.items():
            assert lane.config == made.file.config.models[name] and (lane.queue.running, lane.queue.waiting) == (0, 0)
        assert set(+Engine.in_memory) <= set(made.router.lanes), "an engine of a removed model is left"
        assert set(made.metrics._states.lanes) == set(made.router.lanes)
