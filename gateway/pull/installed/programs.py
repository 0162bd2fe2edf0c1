"""The default folders for models of other programs, as they document them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gateway.bundles.json_file import read_small_file

OLLAMA = "Ollama"
#: Where Qualcomm's helper for AI Dev Home's zips is cloned to, and its folder of models.
_HELPERS = ("ai-engine-direct-helper", "qai-appbuilder")
_HELPER_MODELS = Path("samples", "genie", "python", "models")


class Program(NamedTuple):
    name: str
    folder: Path


def program_folders(home: Path, environ: Mapping[str, str], platform: str = sys.platform) -> Iterator[Program]:
    """Every folder that can exist on this system, whether it does or not."""
    yield Program("Foundry Local", home / ".foundry" / "cache" / "models")
    yield Program("AI Toolkit", home / ".aitk" / "models")
    yield Program("GenieX", named(environ, "GENIEX_DATADIR", home / ".cache" / "geniex") / "models")
    for root in (home, Path("C:/")) if platform == "win32" else (home,):
        for helper in _HELPERS:
            yield Program("AI Dev Home", root / helper / _HELPER_MODELS)
    for folder in _lm_studio(home):
        yield Program("LM Studio", folder)
    yield Program("AnythingLLM", app_data(home, environ, platform) / "anythingllm-desktop" / "storage" / "models")
    yield Program(OLLAMA, named(environ, "OLLAMA_MODELS", home / ".ollama" / "models"))
    if platform == "linux":
        yield Program(OLLAMA, Path("/usr/share/ollama/.ollama/models"))  # its service runs as the user `ollama`


def app_data(home: Path, environ: Mapping[str, str], platform: str) -> Path:
    """The folder of desktop programs' data."""
    if platform == "win32":
        return named(environ, "APPDATA", home / "AppData" / "Roaming")
    if platform == "darwin":
        return home / "Library" / "Application Support"
    return named(environ, "XDG_CONFIG_HOME", home / ".config")


def named(environ: Mapping[str, str], variable: str, default: Path) -> Path:
    text = environ.get(variable, "").strip().strip('"')
    return Path(text) if text and "\0" not in text else default


def _lm_studio(home: Path) -> Iterator[Path]:
    """The folder that its pointer file names, its default folder, and that of versions before 0.3."""
    try:
        text = read_small_file(home / ".lmstudio-home-pointer").decode().strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    named = [Path(text)] if text and "\0" not in text else []
    yield from dict.fromkeys(
        folder / "models" for folder in (*named, home / ".lmstudio", home / ".cache" / "lm-studio")
    )
