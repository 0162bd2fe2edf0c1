"""Configurations that are made from another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.file import load_config
from gateway.config.select import with_model
from gateway.config.tables import BundleModel, LocalModel
from gateway.pull.config_edit import add_model, find_user_config

TABLES = [
    {"path": "m"},
    {"source": "models/m.gguf"},
    {"source": "hf:org/repo"},
    {"engine": "genie", "path": "m"},
]


@pytest.mark.parametrize("table", TABLES)
def test_pulled_model_has_the_paths_that_the_file_would_give_it(tmp_path: Path, table: dict[str, str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text('models_dir = "elsewhere"\n[models.a]\nengine = "scripted"\n', encoding="utf-8")
    made = with_model(load_config(file, {}), "m", table, file, "cpu" if "engine" not in table else None).models["m"]
    add_model(find_user_config(file), "m", table)
    read = load_config(file, {}, {"models.provider": "cpu"}).models["m"]
    assert made == read
    assert isinstance(made, BundleModel) and Path(made.path).is_absolute()
    if isinstance(made, LocalModel) and made.source.endswith(".gguf"):
        assert Path(made.source) == tmp_path / "models" / "m.gguf"
