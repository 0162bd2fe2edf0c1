"""Files of clients: merged, copied once, replaced in one step, or left as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from gateway.commands.launch.client import File
from gateway.commands.launch.files import write
from gateway.errors import ConfigError


def file(path: Path, content: Any, format: Any = "json", **fields: Any) -> File:
    return File(path=path, format=format, content=content, **fields)


def test_new_file_gets_its_folder_and_the_beginning(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.yaml"
    assert list(write(file(path, {"models": [{"name": "a"}]}, "yaml", initial="name: Local\n"))) == [f"{path}: written"]
    assert path.read_text(encoding="utf-8") == "name: Local\nmodels:\n  - name: a\n"
    assert path.stat().st_mode & 0o077 == 0  # it can have a key
    assert sorted(each.name for each in path.parent.iterdir()) == ["config.yaml"]


def test_old_file_is_copied_once(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text('{"theirs": 1}\n', encoding="utf-8")
    lines = [*write(file(path, {"mine": 1})), *write(file(path, {"mine": 2})), *write(file(path, {"mine": 2}))]
    assert json.loads(path.read_text(encoding="utf-8")) == {"theirs": 1, "mine": 2}
    [backup] = tmp_path.glob("settings.json.*.bak")
    assert backup.read_text(encoding="utf-8") == '{"theirs": 1}\n'
    assert [line.split(": ")[1] for line in lines] == [
        f"the old file is {backup.name}",
        "written",
        "written",
        "is up to date",
    ]


def test_toml_keys_go_before_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('# mine\nmodel = "a" # b\n[tui]\nx = 1\n', encoding="utf-8")
    list(write(file(path, {"model": "c", "model_provider": "p", "model_providers": {"p": {"name": "n"}}}, "toml")))
    text = path.read_text(encoding="utf-8")
    expected = {"model": "c", "model_provider": "p", "tui": {"x": 1}, "model_providers": {"p": {"name": "n"}}}
    assert tomlkit.parse(text).unwrap() == expected and "# mine" in text


@pytest.mark.parametrize(
    ("format", "text"),
    [
        ("json", "{broken"),
        ("json", "[" * 5000),
        ("yaml", "a: [1"),
        ("yaml", "models: [{name: a}]\n"),
        ("yaml", "- a list\n"),
        ("yaml", "models:\n  - name: [a]\n"),
        ("json", '{"models": {"mine": 1}}'),
        ("toml", "= 1"),
    ],
)
def test_file_that_cannot_be_merged_is_left_with_advice(tmp_path: Path, format: Any, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        list(write(file(path, {"models": [{"name": "mine"}]}, format, identity="name")))
    assert "Add this yourself:" in caught.value.message and "mine" in caught.value.message
    assert path.read_text(encoding="utf-8") == text and list(tmp_path.iterdir()) == [path]


def test_byte_order_mark_and_line_ends_stay(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(b'\xef\xbb\xbf{\r\n  "a": 1\r\n}\r\n')
    list(write(file(path, {"b": {"c": 2}})))
    assert path.read_bytes() == b'\xef\xbb\xbf{\r\n  "a": 1,\r\n  "b": {\r\n    "c": 2\r\n  }\r\n}\r\n'


@pytest.mark.parametrize(
    ("format", "old", "new"),
    [
        ("json", '{\n  "a": 1 // one\n}\n', '{\n  "a": 1, // one\n  "l": [\n    {\n      "name": "n"\n    }\n  ]\n}\n'),
        (
            "json",
            '{\n  "l": [\n    1, // one\n  ]\n}\n',
            '{\n  "l": [\n    1, // one\n    {\n      "name": "n"\n    }\n  ]\n}\n',
        ),
        ("yaml", "l:\n  - name: a # one\nb: 2\n", "l:\n  - name: a # one\n  - name: n\nb: 2\n"),
    ],
)
def test_comment_stays_with_its_value(tmp_path: Path, format: Any, old: str, new: str) -> None:
    path = tmp_path / "settings"
    path.write_text(old, encoding="utf-8")
    list(write(file(path, {"l": [{"name": "n"}]}, format, identity="name")))
    assert path.read_text(encoding="utf-8") == new


def test_link_to_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.symlink_to(path)
    with pytest.raises(ConfigError, match="a link to itself"):
        list(write(file(path, {"b": 2})))


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b" " * (2**22 + 1)], ids=["not UTF-8", "too large"])
def test_unreadable_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"settings\.json"):
        list(write(file(path, {"b": 2})))
    assert path.read_bytes() == content


def test_link_stays_a_link(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.json"
    real.write_text("{}", encoding="utf-8")
    link = tmp_path / "settings.json"
    link.symlink_to(real)
    list(write(file(link, {"b": 2})))
    assert link.is_symlink() and json.loads(real.read_text(encoding="utf-8")) == {"b": 2}
