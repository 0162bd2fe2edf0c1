"""`examine`: what is read of a hostile zip."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from gateway.bundles.preflight.files import files_of
from gateway.pull.examine import verdict


def test_small_files_together_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files that compress to nothing would fill the disk."""
    monkeypatch.setattr(verdict, "_MOST_SMALL", 25_000)
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        for number in range(9):
            opened.writestr(f"{number}.json", bytes(10_000))
    files = files_of(zipfile.Path(tmp_path / "m.zip"))
    with verdict._small_files(files, "m") as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["0.json", "1.json"]
