"""What is on the disk, and how a model leaves it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gateway.bundles.origin import Origin, write_origin
from gateway.bundles.stamp import npu_folder
from gateway.config.file import load_config
from gateway.errors import BundleError, ConfigError
from gateway.pull.config_edit import find_user_config
from gateway.pull.job import gguf_path, work_folder
from gateway.pull.stored import is_missing, remove, stored

CONFIG = """\
default_model = "kept"
[models.kept]
engine = "scripted"
fallback = "needed"
[models.needed]
path = "needed"

[models.tiny]  # pulled
path = "tiny"
[models.tiny.breaker]
rate = 0.25

# the last one
[models.away]
path = '{away}'
"""


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> Path:
    """Models that were pulled, put there by hand, are elsewhere, and an interrupted download."""
    file, models = tmp_path / "config.toml", tmp_path / "models"
    away = shutil.copytree(tiny, tmp_path / "away")
    file.write_text(CONFIG.format(away=away), encoding="utf-8")
    for name in ("tiny", "hand"):
        shutil.copytree(tiny, models / name)
        (models / name / "bundle.json").unlink()
    write_origin(models / "tiny", Origin(source="https://host/tiny.zip", url="https://host/tiny.zip", licence="mit"))
    part = work_folder(models, "half") / "half.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    return file


def rows(config: Path) -> dict[str, tuple[str, bool, str]]:
    found = stored(find_user_config(config).config)
    return {each.name: (each.state, each.is_configured, each.source) for each in found}


def test_list_shows_states_and_sources(config: Path) -> None:
    assert rows(config) == {
        "away": ("elsewhere", True, "source"),
        "half": ("interrupted", False, ""),
        "hand": ("ready", False, ""),
        "tiny": ("ready", True, "https://host/tiny.zip"),
    }
    [tiny] = [each for each in stored(find_user_config(config).config) if each.name == "tiny"]
    assert tiny.layout == "graph" and tiny.licence == "mit" and tiny.bytes > 100_000


def test_damaged_bundle_is_listed(config: Path) -> None:
    (config.parent / "models" / "hand" / "genai_config.json").write_text("{", encoding="utf-8")
    assert rows(config)["hand"][0] == "damaged"


def test_remove_takes_table_folder_weights_and_download(config: Path) -> None:
    models = config.parent / "models"
    npu_folder(models / "tiny").mkdir()
    stamp = '{"format": 8, "target": "npu", "source": "tiny.gguf"}'
    (npu_folder(models / "tiny") / "bundle.json").write_text(stamp, encoding="utf-8")
    gguf_path(models, "tiny").write_bytes(b"GGUF")
    work_folder(models, "tiny").mkdir()
    removed = remove("tiny", find_user_config(config))
    assert len(removed) == 5 and removed[0] == f"[models.tiny] in {config}"
    assert sorted(path.name for path in models.iterdir()) == [".pull", "hand"]
    text = config.read_text(encoding="utf-8")
    assert "# the last one\n[models.away]" in text and "tiny" not in text and "rate" not in text
    assert "tiny" not in load_config(config, {}).models
    with pytest.raises(ConfigError, match="There is no model 'tiny'"):
        remove("tiny", find_user_config(config))


@pytest.mark.parametrize("other", ["tiny-npu", "tiny.gguf"])
@pytest.mark.parametrize("is_configured", [True, False])
def test_model_whose_name_begins_with_the_name_stays(config: Path, other: str, is_configured: bool) -> None:
    folder = config.parent / "models" / other
    shutil.copytree(config.parent / "models" / "tiny", folder)
    if is_configured:
        (folder / ".pulled.json").unlink()
        with config.open("a", encoding="utf-8") as file:
            file.write(f'[models."{other}"]\npath = "{other}"\n')
    remove("tiny", find_user_config(config))
    assert (folder / "genai_config.json").is_file() and not (folder.parent / "tiny").exists()


def test_model_that_is_elsewhere_keeps_its_files(config: Path) -> None:
    assert remove("away", find_user_config(config)) == [f"[models.away] in {config}"]
    assert (config.parent / "away" / "genai_config.json").is_file()


@pytest.mark.parametrize("is_listed", [True, False])
def test_what_a_killed_first_build_left_is_removed(config: Path, is_listed: bool) -> None:
    """There is no bundle of this name yet. `NAME.v2` is another model."""
    models = config.parent / "models"
    left, other = models / ".new.0123abcd.building", models / ".new.v2.0123abcd.building"
    for folder in (left, other):
        folder.mkdir()
    with config.open("a", encoding="utf-8") as file:
        file.write('[models.new]\nsource = "new.gguf"\n')
    if is_listed:
        assert "new" not in rows(config)
    else:
        remove("new", find_user_config(config))
    assert not left.exists() and other.exists()


def test_model_that_drafts_for_another_is_not_removed(config: Path) -> None:
    with config.open("a", encoding="utf-8") as file:
        file.write('[models.big]\npath = "big"\ndraft = "tiny"\n')
    with pytest.raises(ConfigError, match=r"'tiny' is still named by \[models.big\] draft"):
        remove("tiny", find_user_config(config))


def test_model_that_a_key_may_use_is_not_removed(config: Path) -> None:
    with config.open("a", encoding="utf-8") as file:
        file.write('[limits]\nmodels = ["tiny"]\n')
    with pytest.raises(ConfigError, match=r"'tiny' is still named by \[limits\] models"):
        remove("tiny", find_user_config(config))


def test_interrupted_download_is_removed(config: Path) -> None:
    remove("half", find_user_config(config))
    assert "half" not in rows(config)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hand", "was neither pulled nor built here"),
        ("kept", "'kept' is still named by default_model. Change that first."),
        ("needed", r"'needed' is still named by \[models.kept\] fallback"),
        ("nothing", "There is no model 'nothing'. `npu-gateway list`"),
        ("../away", "cannot be a model's name"),
    ],
)
def test_refusal_changes_nothing(config: Path, name: str, words: str) -> None:
    before, text = rows(config), config.read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match=words):
        remove(name, find_user_config(config))
    assert rows(config) == before and config.read_text(encoding="utf-8") == text


def test_folder_in_use_is_named_and_repeated(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows while a gateway has its files open."""
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "tiny":
            raise PermissionError(13, "Access is denied")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(BundleError, match="Stop the gateway that uses it, and repeat the command"):
            remove("tiny", find_user_config(config))
    remove("tiny", find_user_config(config))
    assert "tiny" not in rows(config)


def test_what_must_be_pulled_before_it_is_served(config: Path) -> None:
    loaded = find_user_config(config).config
    missing = {name: is_missing(loaded, name) for name in (*loaded.models, "unknown")}
    assert missing == {"kept": False, "needed": True, "tiny": False, "away": False, "unknown": True}
