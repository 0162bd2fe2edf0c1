"""Installs locked packages for the tests that need Node."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

INSTALL_S = 600  # a busy machine
_OPTIONS = ("--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1")


def install(source: Path, names: Sequence[str], folder: Path, *command: str) -> Path:
    """Copy the files `names` of `source` into `folder`, and run `npm COMMAND` in it. Returns `folder`.

    Skips the test if there is no Node, or if npm cannot install here.
    """
    if (npm := shutil.which("npm")) is None or shutil.which("node") is None:
        pytest.skip("Node is not installed")
    for name in names:
        shutil.copy(source / name, folder)
    try:
        done = subprocess.run([npm, *command, *_OPTIONS], cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        pytest.skip("npm reached no registry in time")
    if done.returncode != 0:
        assert "EUSAGE" not in done.stderr, done.stderr  # package-lock.json does not fit package.json
        pytest.skip(f"npm could not install: {done.stderr.strip()[:200]}")
    return folder
