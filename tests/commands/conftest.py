from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.processes import SCRIPTED


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose config.toml has one scripted model."""
    (tmp_path / "config.toml").write_text(SCRIPTED, encoding="utf-8")
    return tmp_path
