"""BundleEngine: the kind of a bundle is looked up at each start, because its folder can come later."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.bundles.encoder.bundle import ENCODER_FILE
from gateway.config.tables import LocalModel
from gateway.engines.by_kind import BundleEngine
from gateway.errors import BundleError


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
