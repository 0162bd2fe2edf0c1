"""Loader: exponential backoff of failed loads and of lost engines. In virtual time."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.config.tables import ScriptedModel
from gateway.errors import EngineFailed, ModelNotReady
from gateway.lanes.memory.loader import Loader
from tests.support.lanes import Engine, answer, config, running
from tests.support.virtual_time import in_virtual_time, now


class Mortal(Engine):
    """An engine that is lost `lives_s` seconds after each load, and can fail to load."""

    def __init__(self, model: ScriptedModel, lives_s: float) -> None:
        super().__init__(model)
        self.lives_s = lives_s
        self.starts: list[float] = []
        self.fails_from = 1_000_000  # the number of the first load that fails

    async def start(self) -> None:
        self.starts.append(now())
        if len(self.starts) > self.fails_from:
            raise EngineFailed("no device")
        await super().start()

    async def lost(self) -> str:
        await asyncio.sleep(self.lives_s)
        return "its worker died"


@in_virtual_time
async def test_failed_load_is_retried_with_exponential_backoff(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(config(), load_faults=3)
    async with running(config(), engine=engine) as lane:
        assert lane.status.engine.state == "failed"
        assert lane.status.engine.detail == "model.onnx is missing"
        with pytest.raises(ModelNotReady, match=r"test could not be loaded: model\.onnx is missing"):
            await answer(lane)
        assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
            "test cannot be loaded: model.onnx is missing; it is tried again; `npu-gateway doctor` looks for the reason"
        ]
        await asyncio.sleep(0.5 + 1 + 2 - 0.01)
        assert lane.status.engine.state == "failed"
        await asyncio.sleep(0.02)
        assert lane.status.is_ready
        await answer(lane)


@pytest.mark.parametrize(
    ("lives_s", "pauses"),
    [(1.0, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]), (61.0, [0.5] * 8)],
    ids=["dies soon", "was stable"],
)
@in_virtual_time
async def test_lost_engine_is_loaded_again_with_exponential_backoff(
    lives_s: float, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    engine = Mortal(config(), lives_s)
    task = asyncio.create_task(Loader("test", engine, now).run())
    while len(engine.starts) < 9:  # noqa: ASYNC110 (virtual time)
        await asyncio.sleep(1)
    task.cancel()
    gaps = [later - earlier - lives_s for earlier, later in zip(engine.starts, engine.starts[1:], strict=False)]
    assert gaps == pytest.approx(pauses)
    assert "test: its worker died; it is loaded again in 0.5 s" in caplog.text


@in_virtual_time
async def test_status_of_failed_restart_is_restarting_with_reason() -> None:
    engine = Mortal(config(), 1.0)
    engine.fails_from = 1
    loader = Loader("test", engine, now)
    task = asyncio.create_task(loader.run())
    await loader.tried.wait()
    assert loader.status.state == "ready"
    await asyncio.sleep(1.6)
    assert (loader.status.state, loader.status.detail) == ("restarting", "no device")
    await asyncio.sleep(60)
    assert 2.0 <= loader.retry_after_s <= 30.0
    task.cancel()
