"""`add_model` and `remove_model` keep every other byte of config.toml."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

import pytest

from gateway.config import find as config_find
from gateway.config.file import load_config
from gateway.errors import ConfigError
from gateway.pull.config_edit import add_model, find_user_config, note_model, remove_model
from tests.support.paths import ROOT

OWN = """\
# my gateway
default_model = "a"   # for the editor

[server]
port = 8123

[models.a]   # mine
engine = "scripted"
[models.a.breaker]
rate = 0.25

# the other one
[models."b.c"]
engine = "scripted"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_bytes(OWN.encode())
    return path


def test_table_is_added_at_the_end(file: Path) -> None:
    add_model(find_user_config(file), "qwen3-4b", {"path": "qwen3-4b"})
    assert file.read_bytes().decode() == OWN + '\n[models."qwen3-4b"]\npath = "qwen3-4b"\n'
    assert list(load_config(file, {}).models) == ["a", "b.c", "qwen3-4b"]


def test_added_and_removed_leaves_the_file_as_it_was(file: Path) -> None:
    add_model(find_user_config(file), "x.y", {"engine": "genie", "path": 'C:\\models\\"x"'})
    assert load_config(file, {}).models["x.y"].engine == "genie"
    remove_model(find_user_config(file), "x.y")
    assert file.read_bytes().decode().rstrip() + "\n" == OWN


def test_removal_keeps_the_comment_of_the_next_table(file: Path) -> None:
    file.write_text(OWN.replace("default_model", "# default_model"), encoding="utf-8")
    remove_model(find_user_config(file), "a")
    text = file.read_text(encoding="utf-8")
    assert '# the other one\n[models."b.c"]' in text and "# mine" not in text and "rate" not in text
    assert "# my gateway" in text
    remove_model(find_user_config(file), "b.c")
    assert "models" not in tomllib.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_mark_of_windows_are_kept(file: Path, mark: str) -> None:
    before = mark + OWN.replace("\n", "\r\n")
    file.write_bytes(before.encode())
    add_model(find_user_config(file), "m", {"path": "m"})
    assert file.read_bytes().decode() == before + '\r\n[models."m"]\r\npath = "m"\r\n'
    remove_model(find_user_config(file), "m")
    assert file.read_bytes().decode().rstrip() == before.rstrip()


def test_file_without_end_of_line_and_missing_file(file: Path, tmp_path: Path) -> None:
    file.write_text("[models.a]\nengine = 'scripted'", encoding="utf-8")
    add_model(find_user_config(file), "m", {"path": "m"})
    assert list(load_config(file, {}).models) == ["a", "m"]
    add_model(find_user_config(tmp_path / "new" / "config.toml"), "m", {"path": "m"})
    assert (tmp_path / "new" / "config.toml").read_text(encoding="utf-8") == '[models."m"]\npath = "m"\n'


def test_inline_table_is_refused(file: Path) -> None:
    text = 'models = { a = { engine = "scripted" } }\n'
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        add_model(find_user_config(file), "m", {"path": "m"})
    assert "only a person can change. Add the printed table" in caught.value.message
    with pytest.raises(ConfigError, match="Remove the table"):
        remove_model(find_user_config(file), "a")
    assert file.read_text(encoding="utf-8") == text


def test_header_inside_a_text_is_no_header(file: Path) -> None:
    hidden = "[models.a.script]\nreplies = ['''\n[models.b]\nx''']\n"
    text = f"[models.a]\nengine = 'scripted'\n{hidden}[models.b]\nengine = 'scripted'\n"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="only a person can change"):
        remove_model(find_user_config(file), "b")
    assert file.read_text(encoding="utf-8") == text


@pytest.mark.skipif(sys.platform == "win32", reason="the rights of POSIX")
def test_rights_and_link_are_kept(file: Path, tmp_path: Path) -> None:
    file.chmod(0o600)
    (tmp_path / "link.toml").symlink_to(file)
    add_model(find_user_config(tmp_path / "link.toml"), "m", {"path": "m"})
    assert file.stat().st_mode & 0o777 == 0o600 and (tmp_path / "link.toml").is_symlink()
    assert "m" in load_config(file, {}).models


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="mounts")
def test_read_only_file_is_refused(tmp_path: Path) -> None:
    from tests.support.small_disk import small_disk

    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        (disk.folder / "config.toml").write_text(OWN, encoding="utf-8")
        disk.make_read_only()
        with pytest.raises(ConfigError) as caught:
            add_model(find_user_config(disk.folder / "config.toml"), "m", {"path": "m"})
    assert "cannot be written: Read-only file system" in caught.value.message
    assert "Add the printed table" in caught.value.message


def test_packaged_file_becomes_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an installed package: config.toml lies with the module, and the user's data folder is empty."""
    package = tmp_path / "site" / "gateway"
    package.mkdir(parents=True)
    packaged = (ROOT / "config.toml").read_bytes()
    (package / "config.toml").write_bytes(packaged)
    monkeypatch.setattr(config_find, "__file__", str(package / "config" / "find.py"))
    monkeypatch.setattr(config_find, "data_folder", lambda environ: tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    user = find_user_config(None)
    assert user.file == tmp_path / "data" / "config.toml"
    assert user.config.models_dir == tmp_path / "data" / "models"
    add_model(user, "m", {"path": "m"})
    assert (package / "config.toml").read_bytes() == packaged
    assert user.file.read_bytes().startswith(packaged.rstrip())
    assert find_user_config(None).file == user.file and "m" in load_config(None, {}).models
    assert load_config(None, {}).models_dir == tmp_path / "data" / "models"


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_note_is_one_comment_below_the_header(tmp_path: Path, newline: str) -> None:
    file = tmp_path / "config.toml"
    lines = ["# mine", "[models.a]  # the header", 'path = "a"  # kept', "", "[models.b]", 'path = "b"', ""]
    file.write_bytes(newline.join(lines).encode())
    for text in ("first", "second"):
        note_model(find_user_config(file), "a", text)
    noted = [*lines[:2], "# npu-gateway: second", *lines[2:]]
    assert file.read_bytes() == newline.join(noted).encode()
    remove_model(find_user_config(file), "a")
    assert "second" not in file.read_text(encoding="utf-8")


def test_note_about_a_model_without_a_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[models]\na = { path = "a" }\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="there is no table of a"):
        note_model(find_user_config(file), "a", "text")
