"""The finished pieces of a build, in a folder that a later run continues with.

    FOLDER/recipe.json         what the pieces are for. Pieces of another recipe are removed
    FOLDER/NAME/               complete and on the disk
    FOLDER/NAME.HEX.new/       incomplete

A piece has the files of the bundle in the folder `files`; the others are for the pieces after it.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.bundles.disk import sync_folder, sync_tree, write_error
from gateway.bundles.json_file import read_record
from gateway.bundles.replace import rename
from gateway.bundles.stamp import RECIPE_FILE, remove_pieces
from gateway.errors import BundleError

FILES = "files"
_BUSY_S = 2.0 if sys.platform == "win32" else 0.0  # a virus scanner opens new files for a moment


class Recipe(Struct, frozen=True, kw_only=True):
    """What a build is made from and for. `without`: the graphs that the NPU refused."""

    key: str
    without: tuple[str, ...] = ()


class Pieces:
    """The pieces of one build. The caller holds the lock of the bundle.

    Args:
        folder: is made; the pieces of a build with another key are removed from it.
        key: names the source, the target and the versions of the libraries.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.made = 0  # pieces that this object has made
        self.recipe = read_record(folder / RECIPE_FILE, Recipe) or Recipe(key="")
        if self.recipe.key != key:
            self.restart(Recipe(key=key))

    def restart(self, recipe: Recipe) -> None:
        """Remove the pieces, and begin with another recipe. Raises BundleError if a program uses one of them."""
        until = time.monotonic() + _BUSY_S
        remove_pieces(self.folder)
        while self.folder.is_dir() and any(self.folder.iterdir()):
            if time.monotonic() >= until:
                raise BundleError(f"{self.folder} cannot be removed. Stop the programs that use it, and start again.")
            time.sleep(0.05)
            remove_pieces(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        new = self.folder / f".{RECIPE_FILE}.new"
        new.write_bytes(msgspec.json.encode(recipe))
        new.replace(self.folder / RECIPE_FILE)
        self.recipe = recipe

    def make(self, name: str, fill: Callable[[Path], None]) -> Path:
        """The finished piece `name`. If there is none, `fill` makes it in a folder with an empty folder `files`."""
        piece = self.folder / name
        if piece.is_dir():
            return piece
        for left in self.folder.glob("*.new"):
            shutil.rmtree(left, ignore_errors=True)
        new = self.folder / f"{name}.{uuid.uuid4().hex[:8]}.new"
        try:
            (new / FILES).mkdir(parents=True)
            fill(new)
            sync_tree(new)
            rename(new, piece)
            sync_folder(self.folder)
        except OSError as error:
            raise write_error(self.folder, error) from error
        self.made += 1
        return piece


def link_files(piece: Path, folder: Path) -> None:
    """Give the files of a piece a second name in `folder`, or copy them where the file system has no links."""
    for file in (piece / FILES).iterdir():
        try:
            os.link(file, folder / file.name)
        except OSError:
            shutil.copyfile(file, folder / file.name)
