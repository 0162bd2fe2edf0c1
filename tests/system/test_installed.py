"""Models of other programs answer where they are, and nothing of theirs is changed."""

from __future__ import annotations

import shutil
from pathlib import Path

from gateway.commands.models.prepare import prepare
from gateway.config.file import load_config
from gateway.pull.installed.programs import program_folders
from gateway.pull.installed.search import find_installed
from tests.support.other_programs import FOUNDRY, ollama_model, state
from tests.support.server import serving


def test_models_of_other_programs_answer_where_they_are(tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    own_files = shutil.ignore_patterns("hashes.json", ".*")
    shutil.copytree(tiny, home / FOUNDRY / "tiny-generic-cpu-1" / "v1", ignore=own_files)
    ollama_model(home / ".ollama" / "models", "library/tiny/1b")
    before = state(home)

    found = find_installed(program_folders(home, {}, "darwin"))
    file = tmp_path / "config.toml"
    file.write_text("\n".join(model.table for model in found), encoding="utf-8")
    with serving(prepare(load_config(file, {}))) as server:
        server.wait_until_tried()
        for name in ("tiny-generic-cpu-1", "tiny-1b"):
            answer = server.openai().completions.create(model=name, prompt="The", max_tokens=3)
            assert answer.usage is not None and answer.usage.completion_tokens > 0
    assert state(home) == before
