"""The folders of other programs on each system."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.pull.installed.programs import program_folders


def folders(home: Path, platform: str, **environ: str) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for program in program_folders(home, environ, platform):
        found.setdefault(program.name, []).append(program.folder)
    return found


@pytest.mark.parametrize("platform", ["win32", "darwin", "linux"])
def test_documented_folders_are_searched(tmp_path: Path, platform: str) -> None:
    found = folders(tmp_path, platform)
    assert found["Foundry Local"] == [tmp_path / ".foundry" / "cache" / "models"]
    assert found["AI Toolkit"] == [tmp_path / ".aitk" / "models"]
    assert found["GenieX"] == [tmp_path / ".cache" / "geniex" / "models"]
    assert found["LM Studio"] == [tmp_path / ".lmstudio" / "models", tmp_path / ".cache" / "lm-studio" / "models"]
    data = {"win32": "AppData/Roaming", "darwin": "Library/Application Support", "linux": ".config"}[platform]
    assert found["AnythingLLM"] == [tmp_path / data / "anythingllm-desktop" / "storage" / "models"]
    assert found["Ollama"][0] == tmp_path / ".ollama" / "models"
    assert (len(found["Ollama"]) == 2) == (platform == "linux")
    assert (Path("C:/ai-engine-direct-helper/samples/genie/python/models") in found["AI Dev Home"]) == (
        platform == "win32"
    )


def test_folders_that_the_user_has_moved_are_searched(tmp_path: Path) -> None:
    (tmp_path / ".lmstudio-home-pointer").write_text(f"{tmp_path / 'studio'}\n", encoding="utf-8")
    found = folders(tmp_path, "linux", OLLAMA_MODELS=f'"{tmp_path / "o"}"', GENIEX_DATADIR=str(tmp_path / "g"))
    assert found["Ollama"][0] == tmp_path / "o"
    assert found["GenieX"] == [tmp_path / "g" / "models"]
    assert found["LM Studio"][0] == tmp_path / "studio" / "models"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a\0b"])
def test_damaged_pointer_is_ignored(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".lmstudio-home-pointer").write_bytes(content)
    assert folders(tmp_path, "win32")["LM Studio"][0] == tmp_path / ".lmstudio" / "models"
