"""The tokenizer of a bundle that has none: it comes from the model that the bundle was made from."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from gateway.bundles.hashes import check_hashes
from gateway.bundles.open import open_bundle
from gateway.config.file import load_config
from gateway.config.tables import LocalModel
from gateway.pull.config_edit import find_user_config
from gateway.pull.examine.original import original_of
from gateway.pull.stored import remove
from tests.pull.test_pull import Desk
from tests.support.model_server import ModelServer
from tests.support.other_programs import state

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def hub(server: ModelServer, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> ModelServer:
    """The Hub with the original model."""
    monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", server.url)
    files = {name: (tiny / name).read_bytes() for name in TOKENIZER}
    server.repos["org/Original-1B"] = files | {"model.safetensors": bytes(9), "sub/tokenizer.json": b"{}"}
    return server


@pytest.fixture
def export(tiny: Path, tmp_path: Path) -> Path:
    """A bundle without a tokenizer. Its model card names the original model."""
    ignored = shutil.ignore_patterns(*TOKENIZER, "bundle.json", "hashes.json", ".checked.json", "chat_template*")
    folder = Path(shutil.copytree(tiny, tmp_path / "theirs" / "export", ignore=ignored))
    (folder / "README.md").write_text("---\nbase_model:\n- org/Original-1B\n---\n# A model\n", encoding="utf-8")
    return folder


def test_bundle_in_place_gets_its_tokenizer_in_the_models_folder(hub: ModelServer, desk: Desk, export: Path) -> None:
    before = state(export)
    pulled = desk.pull(export)
    assert pulled.table == {"path": str(export), "tokenizer": ".tokenizers/export"} and pulled.is_complete
    assert state(export) == before and desk.names() == [".tokenizers"]
    assert "the bundle has no tokenizer, so that of org/Original-1B is downloaded" in desk.lines
    model = load_config(desk.config, {}).models["export"]
    assert isinstance(model, LocalModel)
    assert open_bundle(Path(model.path), "", model.tokenizer).tokenizer_path.read_bytes()
    remove("export", find_user_config(desk.config))
    assert not (desk.models / ".tokenizers" / "export").exists() and state(export) == before


def test_installed_bundle_has_the_tokenizer_among_its_files(hub: ModelServer, desk: Desk, export: Path) -> None:
    with zipfile.ZipFile(export.parent / "export.zip", "w") as opened:
        for file in export.iterdir():
            opened.write(file, f"inner/{file.name}")
    pulled = desk.pull(export.parent / "export.zip")
    assert pulled.table == {"path": "export"} and pulled.is_complete
    assert (desk.models / "export" / "tokenizer.json").read_bytes() == hub.repos["org/Original-1B"]["tokenizer.json"]
    assert check_hashes(desk.models / "export") == []


@pytest.mark.parametrize(("fault", "words"), [("none", ""), ("empty", "has no tokenizer.json"), ("card", "")])
def test_tokenizer_that_cannot_be_had_is_named_with_its_command(
    hub: ModelServer, desk: Desk, export: Path, fault: str, words: str
) -> None:
    hub.repos = {"empty": {"org/Original-1B": {"a": b""}}, "none": {}, "card": hub.repos}[fault]
    if fault == "card":
        (export / "README.md").unlink()
    pulled = desk.pull(export)
    assert pulled.table == {"path": str(export)} and not pulled.is_complete
    assert desk.lines[-1].startswith("missing: export has no tokenizer.json. Get it from the original model")
    assert words in desk.lines[-2] and ("cannot be downloaded" in desk.lines[-2]) == (fault != "card")


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("config.json", json.dumps({"_name_or_path": "Qwen/Qwen2.5-0.5B"}), "Qwen/Qwen2.5-0.5B"),
        ("config.json", json.dumps({"_name_or_path": "/home/me/models/x"}), ""),
        ("config.json", json.dumps({"_name_or_path": "C:\\models\\x"}), ""),
        ("metadata.json", json.dumps({"genie": {"hf_repo_name": "org/m"}}), "org/m"),
        ("metadata.yaml", "a: 1\nhf_model_id: 'org/m'\n", "org/m"),
        ("README.md", "---\nbase_model: org/m\n---\n", "org/m"),
        ("README.md", "base_model: a/b/c", ""),
        ("README.md", "base_model:" + " " * 900_000, ""),
        ("README.md", "no line of that kind", ""),
    ],
)
def test_original_is_read_from_small_files(tmp_path: Path, file: str, text: str, name: str) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert original_of(tmp_path) == name
