"""PublishedEngine: our own engine for a Genie bundle, and Genie when our own engine refuses it."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.config.tables import LocalModel
from gateway.engines.local.published import PublishedEngine
from gateway.errors import BundleError, EngineFailed, UnsupportedParameter
from gateway.generation import Generation, Text, TextDelta
from gateway.qnn.device import NpuDevice
from gateway.sampling import Sampling
from tests.support.engines import events_of
from tests.support.npu.genie_layouts import write_layout
from tests.support.npu.published_parts import write_published_binaries


@asynccontextmanager
async def engine_of(folder: Path, **fields: Any) -> AsyncIterator[PublishedEngine]:
    engine = PublishedEngine("m", LocalModel(path=folder.name, provider="qnn", **fields), folder.parent)
    yield engine
    await engine.aclose()


@pytest.fixture
def no_provider(tmp_path: Path) -> dict[str, str]:
    """Provider options of our own engine that no driver accepts. Genie does not get them."""
    file = tmp_path / "no-library.so"
    file.write_text("no library", encoding="utf-8")
    return {"backend_path": str(file)}


def generation(**fields: Any) -> Generation:
    return Generation(
        id="r", model="m", prompt=Text("What is"), sampling=Sampling(temperature=0.0), max_tokens=8, **fields
    )


async def answer(engine: PublishedEngine) -> str:
    events = await events_of(engine, generation())
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_genie_answers_what_our_own_engine_cannot_load(
    published_bundle: Path, no_provider: dict[str, str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async with engine_of(published_bundle) as own:
        await own.start()
        assert (
            own.status.runtime == "own" and "logprobs" in own.status.capabilities and own.status.context_length == 127
        )
        expected = await answer(own)
    folder = tmp_path / "later"  # the table is read before the bundle is there
    async with engine_of(folder, provider_options=no_provider) as engine:
        assert engine.takes_turns
        shutil.copytree(published_bundle, folder)
        with caplog.at_level(logging.WARNING):
            await engine.start()
        assert not engine.takes_turns and engine.status.runtime == "genie"
        assert engine.status.state == "ready" and engine.status.capabilities == ("chat", "tools")
        assert await answer(engine) == expected
        with pytest.raises(UnsupportedParameter, match="runs in Genie, which does not support 'logprobs'"):
            await engine.prepare(generation(logprobs=1))
    first, last = (record.getMessage() for record in caplog.records if record.name.endswith("published"))
    assert "m: our own engine cannot load it (The NPU refuses" in first and "Genie is tried" in first
    assert "m: runs in Genie: no seeds, log-probabilities or JSON schemas" in last


async def test_damage_is_reported_once_and_the_next_start_is_as_the_first(
    published_binaries: list[Path], tmp_path: Path
) -> None:
    folder = write_layout(tmp_path, "geniex", published_binaries).parent
    binary = folder / "tiny_part_3_of_3.bin"
    content = binary.read_bytes()
    binary.write_bytes(content[: len(content) // 2])
    async with engine_of(folder) as engine:
        with pytest.raises(BundleError, match=r"tiny_part_3_of_3\.bin is damaged"):
            await engine.start()
        assert engine.status.state == "failed" and "is damaged" in engine.status.detail
        await asyncio.to_thread(binary.write_bytes, content)
        await engine.start()
        assert "logprobs" in engine.status.capabilities


async def test_two_reasons_are_both_reported(
    published_binaries: list[Path], no_provider: dict[str, str], tmp_path: Path
) -> None:
    def change(dialog: dict[str, Any]) -> None:
        dialog["engine"]["n-threads"] = "many"  # Genie refuses it

    folder = write_layout(tmp_path / "bundle", "geniex", published_binaries, change).parent
    async with engine_of(folder, provider_options=no_provider) as engine:
        with pytest.raises(BundleError, match=r"The NPU refuses .* Genie: "):
            await engine.start()
        assert engine.status.state == "failed" and "Genie: " in engine.status.detail


@pytest.mark.slow
async def test_binaries_that_crash_both_engines_are_an_error(npu: NpuDevice, tmp_path: Path) -> None:
    """The emulation crashes when it loads a binary with shared weights. Each engine does so in its own process."""
    write_published_binaries(tmp_path / "shared", contexts=(64,), share_weights=True)
    folder = write_layout(tmp_path, "geniex", sorted((tmp_path / "shared").glob("*.bin"))).parent
    async with engine_of(folder) as engine:
        with pytest.raises(EngineFailed, match="died while it loaded"):
            await engine.start()
        assert engine.status.state == "failed"


async def test_missing_file_is_reported_once(
    published_binaries: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_layout(tmp_path, "geniex", published_binaries).parent
    (folder / "tokenizer.json").unlink()
    async with engine_of(folder) as engine:
        for _ in range(2):  # the second start is the gateway's own next attempt
            with pytest.raises(
                BundleError,
                match=r"^The tokenizer 'tokenizer\.json' of .* is missing\. Download the bundle again, [\w ]+\.$",
            ):
                await engine.start()
    assert len([record for record in caplog.records if "Genie is tried" in record.getMessage()]) == 1


@pytest.mark.parametrize("name", ["broken", "missing"])
async def test_genie_is_not_tried_for_other_folders(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "genie_config.json").write_bytes(b"{")
    async with engine_of(tmp_path / name) as engine:
        with pytest.raises(BundleError):
            await engine.start()
    assert "Genie is tried" not in caplog.text
