"""The processes that start before the server is imported: the engine takes them, or they end."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from msgspec.structs import replace

from gateway.commands.models.prepare import ask_once, first_ready
from gateway.config.tables import Config, LocalModel, ModelConfig
from gateway.engines import head_start
from gateway.engines.head_start import end_unused, take_prompts, take_worker
from gateway.engines.local.engine import LocalEngine
from gateway.worker.entry import local_worker
from gateway.worker.frames import WorkerSpec


def config_of(**models: ModelConfig) -> Config:
    return Config(models=models, models_dir=Path("/"))


def children() -> set[int]:
    found = set()
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # one of an earlier test that ends now
            if "resource_tracker" not in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def test_engine_takes_the_processes_that_have_started(tiny: Path) -> None:
    async def load() -> int | None:
        engine = LocalEngine("m", found[1], Path("/"))
        await engine.start()
        try:
            assert children() - before == begun  # no further process
            return engine.status.pid
        finally:
            await engine.aclose()

    before = children()
    other, model = LocalModel(path=str(tiny), load="demand"), LocalModel(path=str(tiny), threads=1)
    found = first_ready(config_of(other=other, m=model), None, ask_once())
    assert found is not None and found[0] == "m"
    with head_start.head_start(found, Path("/"), math.inf):
        begun = children() - before
        assert len(begun) == 2
        if sys.platform != "win32":  # Ctrl-C in the terminal, before the worker can ignore it itself
            os.kill(head_start._workers["m"].spawned.process.pid or 0, signal.SIGINT)
        assert asyncio.run(load()) in begun
        assert not head_start._workers and not head_start._prompts
    assert not children() & begun


def test_processes_that_no_engine_takes_end(tiny: Path) -> None:
    before = children()
    with head_start.head_start(("m", LocalModel(path=str(tiny), threads=1)), Path("/"), math.inf):
        begun, spec = children() - before, head_start._workers["m"].spec
        assert len(begun) == 2
        assert take_worker("other", spec, local_worker) is None
        assert take_worker("m", replace(spec, threads=2), local_worker) is None
        end_unused()
        assert not children() & begun
        assert take_worker("m", spec, local_worker) is None


def test_nothing_starts_that_the_gateway_would_not_start(tiny: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for model in (
        LocalModel(path=missing),
        LocalModel(path=missing, source="other.gguf"),
        LocalModel(path=str(tiny), load="demand"),
    ):
        assert first_ready(config_of(m=model), None, ask_once()) is None
    assert first_ready(config_of(m=LocalModel(path=str(tiny))), "another", ask_once()) is None
    before = children()
    for found in (None, ("m", LocalModel(path=missing))):
        with head_start.head_start(found, Path("/"), math.inf):
            pass
        assert children() == before


def test_fault_of_a_head_start_is_left_to_the_engine(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spec_of(model: LocalModel, folder: Path) -> WorkerSpec:
        raise TypeError("a file of the bundle has another type than expected")

    monkeypatch.setattr(head_start, "spec_of", spec_of)
    with head_start.head_start(("m", LocalModel(path=str(tiny))), Path("/"), math.inf):
        assert not head_start._workers


def test_engine_that_takes_while_another_thread_ends_gets_one_or_nothing(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(dict[str, head_start._Prompts]):
        def get(self, *arguments: Any) -> Any:
            found = super().get(*arguments)
            end_unused()  # between a look and what follows
            return found

    ended: list[str] = []
    prompts = cast(Any, SimpleNamespace(end=lambda: ended.append("m")))
    monkeypatch.setattr(head_start, "_prompts", Begun(m=head_start._Prompts(tiny, "", "", prompts)))
    assert (take_prompts("m", tiny, "", "") is prompts) != (ended == ["m"])
