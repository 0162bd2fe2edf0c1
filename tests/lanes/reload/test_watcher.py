"""What a running gateway does by itself when its configuration changes. In virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.config.tables import ScriptedModel, ServerConfig
from gateway.errors import ConfigError, ModelNotFound
from gateway.lanes.reload.presence import Presence
from gateway.lanes.reload.watcher import Watcher
from tests.support.reloading import Gateway, gateway, slowly
from tests.support.routing import answer_of, model, request
from tests.support.virtual_time import in_virtual_time, now

LOOK_S = 6.0  # it looks each five seconds, and a look takes some tenths


@asynccontextmanager
async def watched(is_all: bool = False, **models: ScriptedModel) -> AsyncIterator[Gateway]:
    async with gateway({"server": ServerConfig(watch=is_all)}, **models) as made:
        task = asyncio.create_task(Watcher(made.reloader, made.file, in_thread=slowly).run(made.router))
        try:
            await asyncio.sleep(LOOK_S)
            yield made
            assert not task.done(), "it looks no more"
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@in_virtual_time
async def test_new_model_answers_under_its_names() -> None:
    async with watched(main=model("old")) as made:
        with pytest.raises(ModelNotFound):
            made.router.lookup("late")
        made.file.models(
            main=model("old"), late=model("new", fallback="main", aliases=("gpt-x",), max_tokens=7), nil=model("n")
        )
        await asyncio.sleep(LOOK_S)
        for name in ("late", "gpt-x", "late:background"):
            assert await answer_of(made.router, request(name)) == ("late", "new")
        assert [info.name for info in made.router.models()] == ["main", "late", "nil"]
        assert made.router.defaults_for("late").max_tokens == 7 and made.router.defaults_for("main").max_tokens == 64


@in_virtual_time
async def test_without_watch_other_changes_wait_for_the_command(caplog: pytest.LogCaptureFixture) -> None:
    async with watched(main=model("old"), gone=model("gone")) as made:
        made.file.models(main=model("new"), late=model("late"))
        with caplog.at_level(logging.INFO):
            await asyncio.sleep(3 * LOOK_S)
        assert [info.name for info in made.router.models()] == ["main", "gone", "late"]
        assert await answer_of(made.router, request("main")) == ("main", "old")
        line = "`npu-gateway reload` applies it: removed: gone; loaded again: main (script)"
        assert caplog.text.count(line) == 1 and "late is new in the configuration" in caplog.text
        assert (await made.reloader.reload()).lines == ["removed: gone", "loaded again: main (script)"]
        assert await answer_of(made.router, request("main")) == ("main", "new")


@in_virtual_time
async def test_reload_reports_the_model_that_a_look_has_just_added() -> None:
    """`npu-gateway reload` connects, and the gateway looks at its files when someone connects."""
    async with watched(False, main=model("old")) as made:
        made.file.models(main=model("new"), late=model("late"))
        await asyncio.sleep(1.1 * LOOK_S)
        assert "late" in made.router.lanes
        lines = ["added: late", "loaded again: main (script)"]
        assert (await made.reloader.reload()).lines == lines
        assert (await made.reloader.reload()).lines == ["nothing has changed"]


@in_virtual_time
async def test_with_watch_every_change_applies() -> None:
    async with watched(True, main=model("old"), gone=model("gone")) as made:
        made.file.models(main=model("new"), late=model("late"))
        await asyncio.sleep(2 * LOOK_S)
        assert [info.name for info in made.router.models()] == ["main", "late"]
        assert await answer_of(made.router, request("main")) == ("main", "new")
        made.file.write(server=ServerConfig(port=0))
        await asyncio.sleep(2 * LOOK_S)
        made.file.models(main=model("newest"))
        await asyncio.sleep(2 * LOOK_S)
        assert await answer_of(made.router, request("main")) == ("main", "new"), "it still watches"


@in_virtual_time
async def test_file_that_is_being_written_is_read_when_it_is_complete() -> None:
    """An editor that has written a part of it: the file is right, and lacks models."""
    async with watched(True, main=model("old"), other=model("other")) as made:
        before = dict(made.router.lanes)
        made.file.models(other=model("half"))
        for _ in range(100):
            made.file.writes += 1
            await asyncio.sleep(0.4)
        assert made.router.lanes == before
        made.file.models(main=model("old"), other=model("whole"))
        await asyncio.sleep(2 * LOOK_S)
        assert made.router.lanes["main"] is before["main"]
        assert await answer_of(made.router, request("other")) == ("other", "whole")


@pytest.mark.parametrize("is_all", [False, True])
@in_virtual_time
async def test_mistake_is_one_line_until_it_is_corrected(is_all: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with watched(is_all, main=model("old")) as made:
        made.file.fault = ConfigError("config.toml: line 7: not valid TOML")
        await asyncio.sleep(5 * LOOK_S)
        assert caplog.text.count("is not applied: config.toml: line 7") == 1
        assert await answer_of(made.router, request("main")) == ("main", "old")
        made.file.models(main=model("old"), late=model("late"))
        made.file.fault = None
        await asyncio.sleep(2 * LOOK_S)
        assert await answer_of(made.router, request("late")) == ("late", "late")


@pytest.mark.parametrize("is_all", [False, True])
@in_virtual_time
async def test_model_waits_for_its_bundle(is_all: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Without `watch`, the other new ones do not."""
    async with watched(is_all, main=model("old")) as made:
        made.file.unbuilt.add("late")
        made.file.models(main=model("old"), late=model("late"), more=model("more"))
        await asyncio.sleep(5 * LOOK_S)
        assert list(made.router.lanes) == (["main"] if is_all else ["main", "more"])
        assert caplog.text.count("late: It has no bundle yet.") == 1
        made.file.unbuilt.clear()
        await asyncio.sleep(2 * LOOK_S)
        assert set(made.router.lanes) == {"main", "more", "late"}


@in_virtual_time
async def test_name_of_another_model_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Which the file has removed, and which still runs."""
    async with watched(main=model("old", aliases=("gpt-x",))) as made:
        made.file.models(late=model("new", aliases=("gpt-x",)), ok=model("ok", fallback="late"))
        await asyncio.sleep(3 * LOOK_S)
        assert [info.name for info in made.router.models()] == ["main", "ok"]
        assert caplog.text.count("late is not added: gpt-x already names the model main.") == 1
        assert await answer_of(made.router, request("gpt-x")) == ("main", "old")
        assert await answer_of(made.router, request("ok")) == ("ok", "ok")


@in_virtual_time
async def test_model_without_a_lane_does_not_keep_others_out(caplog: pytest.LogCaptureFixture) -> None:
    async with watched(main=model("old")) as made:
        made.file.models(main=model("old"), bad=model(dialect="fails"), ok=model("ok"))
        await asyncio.sleep(2 * LOOK_S)
        assert [info.name for info in made.router.models()] == ["main", "ok"]
        assert "bad is not added" in caplog.text


@in_virtual_time
async def test_failed_read_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    async with watched(main=model("old")) as made:
        made.file.models(main=model("old"), late=model("new"))
        made.file.fault = OSError("disk")  # type: ignore[assignment]
        await asyncio.sleep(LOOK_S)
        assert "the configuration could not be read again" in caplog.text
        made.file.fault = None
        await asyncio.sleep(LOOK_S)
        assert await answer_of(made.router, request("late")) == ("late", "new")


@in_virtual_time
async def test_without_connections_it_looks_when_someone_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    presence = Presence()
    presence.left()
    async with gateway(main=model("old")) as made:
        state = made.file.state
        monkeypatch.setattr(made.file, "state", lambda: looks.append(now()) or state())
        watcher = Watcher(made.reloader, made.file, in_thread=slowly, presence=presence)
        task = asyncio.create_task(watcher.run(made.router))
        await asyncio.sleep(1000)
        assert looks == [] and not presence.is_fresh
        made.file.models(main=model("old"), late=model("new"))
        presence.came()
        await presence.fresh()
        assert made.router.lookup("late").model == "late"
        await asyncio.sleep(3 * LOOK_S)
        assert len(looks) >= 3
        presence.left()
        await asyncio.sleep(LOOK_S)
        looks.clear()
        await asyncio.sleep(1000)
        assert looks == []
        task.cancel()
        await asyncio.wait([task])


@in_virtual_time
async def test_change_without_connections_is_applied_before_the_first_request() -> None:
    presence = Presence()
    async with gateway({"server": ServerConfig(watch=True)}, main=model("old")) as made:
        watcher = Watcher(made.reloader, made.file, in_thread=slowly, presence=presence)
        task = asyncio.create_task(watcher.run(made.router))
        await asyncio.sleep(LOOK_S)
        presence.left()
        await asyncio.sleep(1000)
        made.file.write(server=ServerConfig(watch=True, api_keys={"me": "new"}))
        presence.came()
        await presence.fresh()
        assert made.reloader.running.server.api_keys == {"me": "new"}
        task.cancel()
        await asyncio.wait([task])


@in_virtual_time
async def test_a_request_waits_three_seconds_at_most_for_a_slow_look() -> None:
    presence = Presence()
    presence.rests()
    await presence.fresh()
    assert now() == 3
