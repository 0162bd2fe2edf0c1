"""Mistakes in the TOML itself: the line, and what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.toml_file import has_header, read_toml
from gateway.errors import ConfigError


def mistake(folder: Path, text: str) -> str:
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_toml(file)
    assert "\n" not in caught.value.message
    return caught.value.message.removeprefix(f"{file}: ")


@pytest.mark.parametrize(
    ("line", "wrong", "right"),
    [
        (r'path = "C:\Users\me"', r"C:\Users\me", r"""'C:\Users\me' or "C:/Users/me" """),
        (r'path = "C:\models"', r"C:\models", r"""'C:\models' or "C:/models" """),
        (r'path = "D:\my models\"', r"D:\my models" + "\\", r"""'D:\my models\' or "D:/my models/" """),
        (r'path = "C:\new\" # the folder', "C:\\new\\", r"""'C:\new\' or "C:/new/" """),
        (r'path = "\\server\share"', r"\\server\share", r"""'\\server\share' or "//server/share" """),
        (r'o = { backend_path = "C:\Qnn\x.dll", n = "1" }', r"C:\Qnn\x.dll", r"""'C:\Qnn\x.dll' or "C:/Qnn/x.dll" """),
        (r'o = ["good", "C:\models\"]', "C:\\models\\", r"""'C:\models\' or "C:/models/" """),
        (r'a = "C:\Us" # not "C:\y"', r"C:\Us", r"""'C:\Us' or "C:/Us" """),
        (r'a = "C:\data\u12"', r"C:\data\u12", r"""'C:\data\u12' or "C:/data/u12" """),
        ('a = "C:\\it\'s\\q"', "C:\\it's\\q", '"C:\\\\it\'s\\\\q" or "C:/it\'s/q" '),
        (r'a = "\d+"', r"\d+", r"'\d+' "),
        (r'[models."C:\x"]', r"C:\x", r"""'C:\x' or "C:/x" """),
    ],
)
def test_backslash_in_double_quotes_names_line_and_right_forms(
    tmp_path: Path, line: str, wrong: str, right: str
) -> None:
    found = mistake(tmp_path, f"# a comment\nx = 1\n{line}\n")
    assert found == f'line 3: in "{wrong}" a backslash starts an escape. Use {right[:-1]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = cpu # c", "line 1: text needs quotes: x = 'cpu'"),
        ("x = C:\\Users\\me", "line 1: text needs quotes: x = 'C:\\Users\\me'"),
        ("x = 0.0.0.0", "line 1: text needs quotes: x = '0.0.0.0'"),
        ("x = \u201ccpu\u201d", "line 1: write straight quotes: x = 'cpu'"),
        ("x = True", "line 1: write x = true"),
        ("y = 1\nx =", "line 2: x has no value"),
        ("x = 'a", "not valid TOML: a text lacks its closing quote"),
        ('x = "a', "line 1: not valid TOML: a text lacks its closing quote"),
        ("a = 1\na = 2", "line 2: not valid TOML: this key is in its table twice"),
        ("[a]\n[a]", "line 2: not valid TOML: this table is in the file twice"),
        ("a = {\n x = 1 }", "line 1: not valid TOML: a table in { } must be on one line"),
        ("a = [1,2", "not valid TOML: a list lacks its ]"),
        ("key: value", "line 1: not valid TOML: expected `key = value`"),
        ("[models.llama 3]", "line 1: not valid TOML: a table is written [NAME]; a name with a space needs quotes"),
        ("x = 10s", "line 1: not valid TOML: there is more after the value; text needs quotes"),
        ("x = -", "line 1: not valid TOML: Invalid value"),
    ],
)
def test_usual_mistake_names_line_and_what_to_write(tmp_path: Path, text: str, message: str) -> None:
    assert mistake(tmp_path, text + "\n").startswith(message)


def test_right_escapes_are_read(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(r'''a = "C:\\models \" \u00e4 \t"  # "C:\x"''', encoding="utf-8-sig")
    assert read_toml(file) == {"a": 'C:\\models " ä \t'}


@pytest.mark.parametrize(
    ("content", "is_found"),
    [
        (b"x = 1\n[models.a]\n", True),
        (b' [ "models"."b c" ]\n', True),
        ("[models]".encode("utf-16"), True),
        ("[models]".encode("utf-8-sig"), True),
        (b"\n" * 200_000 + b"x = 1\n", False),  # read in linear time
        (b"[models_dir]\n[other.models]\n# [models]\nmodels = 1\n", False),
    ],
)
def test_has_header_finds_a_table_in_any_file(tmp_path: Path, content: bytes, is_found: bool) -> None:
    file = tmp_path / "config.toml"
    file.write_bytes(content)
    assert has_header(file, {"models"}) is is_found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".".join(["a"] * 50_000) + " = 1", "no configuration: it has more than 1 MB, or a key with hundreds of parts"),
        ("x = { " + " . ".join(["'a'"] * 50_000) + " = 1 }", "no configuration: it has more than 1 MB, or a key"),
        ("x = 1\n" * 200_000, "no configuration: it has more than 1 MB, or a key"),
        ('"' * 300_000, "line 1: not valid TOML"),
        ("x" + " " * 300_000 + "y", "line 1: not valid TOML"),
        ("x = " + " " * 300_000 + "y", "line 1: not valid TOML"),
        ("a" * 900_000, "not valid TOML"),
    ],
    ids=["parts", "inner-parts", "size", "quotes", "spaces", "spaces-in-value", "word"],
)
def test_hostile_file_is_refused_in_linear_time(tmp_path: Path, text: str, message: str) -> None:
    """./config.toml comes with any folder, and the Tab key reads it."""
    assert mistake(tmp_path, text).startswith(message)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="a file without an end is necessary")
def test_file_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="more than 1 MB"):
        read_toml(tmp_path / "config.toml")
    assert not has_header(tmp_path / "config.toml", {"models"})
