"""The words that can follow, for every kind of position on a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli import make_parser
from gateway.commands.completion.candidates import candidates

MODELS = """
[models.paris]
engine = "scripted"
aliases = ["gpt-4o-mini"]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.toml").write_text(MODELS, encoding="utf-8")
    (tmp_path / "other.toml").write_text(MODELS.replace("paris", "rome"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(line: str) -> list[str]:
    """Candidates for the last word of a command line."""
    *words, current = line.split(" ")
    return [candidate.text for candidate in candidates(make_parser(), words, current)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cha", ["chat"]),
        ("help doct", ["doctor"]),
        ("help chat ", []),
        ("chat --model ", ["paris", "gpt-4o-mini"]),
        ("chat --model=gpt", ["--model=gpt-4o-mini"]),
        ("chat --config other.toml --model r", ["rome"]),
        ("chat --config=missing.toml --model r", []),
        ("serve p", ["paris"]),
        ("serve paris ", []),
        ("bench --provider c", ["cpu"]),
        ("bench --json out.json --pl", ["--plot"]),
        ("chat --system --mo", []),  # the value of --system
        ("chat hello --sy", ["--system"]),
        ("chat --system x --sy", []),  # used already
        ("config pa", ["path"]),
        ("completion po", ["powershell"]),
        ("build ", []),  # a path: the shell completes it
        ("launch claude -- --mo", []),  # for the client
        ("nonsense cha", []),
    ],
)
def test_candidates_of_command_line(line: str, expected: list[str]) -> None:
    assert texts(line) == expected


def test_first_word_is_every_command_with_its_help() -> None:
    found = dict(candidates(make_parser(), [], ""))
    assert {"serve", "chat", "bench", "help", "version"} <= found.keys() and all(found.values())


def test_every_option_of_every_command_has_a_help_text() -> None:
    for command in texts(""):
        found = candidates(make_parser(), [command], "--")
        assert all("%(" not in candidate.help for candidate in found)
        assert [candidate.text for candidate in found if not candidate.help] == []


def test_configuration_with_a_mistake_gives_no_models(folder: Path) -> None:
    (folder / "config.toml").write_text(f"{MODELS}[sever]\n", encoding="utf-8")
    assert texts("chat --model ") == []


def test_names_that_a_shell_would_execute_are_not_offered(folder: Path) -> None:
    """bash and PowerShell insert a candidate as it is, and a configuration comes with any folder."""
    hostile = ["$(touch x)", "`touch x`", "a;touch x", "a|b", "a&b", "'a", '\\"a', "@a", "~a", "-a", "a b", "a>b", "*"]
    names = ", ".join(f'"{name}"' for name in hostile)
    text = f'[models."a$(touch x)"]\nengine = "scripted"\naliases = [{names}, "org/模型:4b"]\n'
    (folder / "config.toml").write_text(text, encoding="utf-8")
    assert texts("chat --model ") == ["org/模型:4b"]
