"""Pieces of another recipe are never used, also if their removal was interrupted or is impossible."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.builder.npu.pieces import FILES, Pieces, Recipe
from gateway.bundles import stamp
from gateway.errors import BundleError


def fill(folder: Path) -> None:
    for name in ("a.bin", "b.bin"):
        (folder / FILES / name).write_bytes(b"weights")


def test_kill_during_the_removal_leaves_no_half_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Pieces(tmp_path / "tiny-npu", "the key")
    piece = pieces.make("part0", fill)

    def killed(folder: Path, ignore_errors: bool = False) -> None:
        (piece / FILES / "a.bin").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stamp.shutil, "rmtree", killed)
        pieces.restart(Recipe(key="the key", without=("batch",)))
    again = Pieces(tmp_path / "tiny-npu", "the key").make("part0", fill)
    assert {path.name for path in (again / FILES).iterdir()} == {"a.bin", "b.bin"}


def test_pieces_that_cannot_be_removed_are_no_pieces_of_the_next_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows removes no file that another program has open."""
    Pieces(tmp_path / "tiny-npu", "the key").make("part0", fill)
    with monkeypatch.context() as patch:
        patch.setattr(stamp.shutil, "rmtree", lambda folder, ignore_errors: None)
        patch.setattr("gateway.builder.npu.pieces._BUSY_S", 0.0)
        for _ in range(2):
            with pytest.raises(BundleError, match="Stop the programs that use it"):
                Pieces(tmp_path / "tiny-npu", "another key")
    assert not (Pieces(tmp_path / "tiny-npu", "another key").folder / "part0").exists()
