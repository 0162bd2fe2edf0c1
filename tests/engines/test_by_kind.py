"""BundleEngine: the kind of a bundle is looked up at each start, because its folder can come later."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.bundles.encoder.bundle import ENCODER_FILE
from gateway.bundles.stamp import npu_folder
from gateway.config.tables import LocalModel, ScriptedModel
from gateway.engines.by_kind import BundleEngine
from gateway.engines.local.process import spec_of
from gateway.engines.scripted.engine import ScriptedEngine
from gateway.errors import BundleError, ModelTooLarge
from gateway.lanes.memory.needs import estimate


@pytest.mark.asyncio
async def test_bundle_that_comes_later_decides_the_kind(tmp_path: Path) -> None:
    engine = BundleEngine("m", LocalModel(path="later"), tmp_path)
    assert "chat" in engine.status.capabilities
    with pytest.raises(BundleError):
        await engine.start()
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / ENCODER_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=rf"{ENCODER_FILE} cannot be read"):
        await engine.start()
    assert engine.status.capabilities == ("embeddings", "rerank")
    await engine.aclose()
    assert engine.status.state == "closed"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "draft", "message"),
    [
        ("chat", "away", "away, which drafts for m, has no bundle: `npu-gateway pull` gets one"),
        ("chat", "encoder", "encoder is an encoder, which cannot draft for m: change `draft`"),
        ("encoder", "chat", "m is an encoder and generates no text: remove `draft` from its table"),
    ],
)
async def test_draft_that_cannot_work_is_refused(tmp_path: Path, path: str, draft: str, message: str) -> None:
    for name in ("chat", "encoder"):
        (tmp_path / name).mkdir()
    (tmp_path / "encoder" / ENCODER_FILE).write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=message):
        await BundleEngine("m", LocalModel(path=path, draft=str(tmp_path / draft)), tmp_path).start()


@pytest.mark.asyncio
async def test_draft_that_is_built_for_the_npu_only_is_found(tmp_path: Path) -> None:
    """A GGUF file gets no bundle for the CPU on a machine with an NPU."""
    (tmp_path / "chat").mkdir()
    npu_folder(tmp_path / "small").mkdir()
    model = LocalModel(path="chat", draft=str(tmp_path / "small"))
    assert spec_of(model, tmp_path / "chat").draft == str(npu_folder(tmp_path / "small"))
    with pytest.raises(BundleError, match=r"^(?!.*has no bundle)"):  # of `chat`, which is empty
        await BundleEngine("m", model, tmp_path).start()


@pytest.mark.asyncio
async def test_loaded_model_keeps_its_capabilities_when_its_bundle_is_removed(tmp_path: Path) -> None:
    """While a new bundle takes the folder, for example."""
    engine = BundleEngine("m", LocalModel(path="later", source="folder"), tmp_path)
    assert engine.status.capabilities == ()
    engine._engine = ScriptedEngine("m", ScriptedModel())
    await engine._engine.start()
    assert "chat" in engine.status.capabilities


@pytest.mark.asyncio
async def test_context_is_limited_by_the_budget_and_a_configured_one_is_refused(long_tiny: Path) -> None:
    """Of 8192 tokens. The estimate before the load has the same number."""
    folder, name = long_tiny.parent, long_tiny.name
    unlimited = estimate(LocalModel(path=str(long_tiny))).window
    assert unlimited and unlimited.context == 8192
    budget = 1.5 * unlimited.bytes
    engine = BundleEngine("m", LocalModel(path=name, threads=1), folder, budget_bytes=budget)
    await engine.start()
    status = engine.status
    await engine.aclose()
    assert status.context_length == 6144 and status.context_note.startswith("context 6144 of 8192: ")
    assert estimate(LocalModel(path=str(long_tiny)), budget).context_length == 6144
    configured = LocalModel(path=name, context_length=8192)
    with pytest.raises(ModelTooLarge, match=r"^m needs .* set context_length to at most 7372, lower max_sequences"):
        await BundleEngine("m", configured, folder, budget_bytes=0.9 * unlimited.bytes).start()
