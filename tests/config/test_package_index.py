"""The settings of pip and uv."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.config.package_index import package_indexes
from gateway.errors import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without settings; those of the whole machine are not read."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr("gateway.config.package_index._pip_files", lambda environ: iter([tmp_path / "pip.conf"]))
    return tmp_path


def test_public_index_is_the_default() -> None:
    found = package_indexes({})
    assert len(found.urls) == 1 and found.urls[0].startswith("https://") and found.links == []


@pytest.mark.parametrize(
    ("environ", "urls"),
    [
        ({"PIP_INDEX_URL": "https://a/simple/"}, ["https://a/simple"]),
        ({"UV_DEFAULT_INDEX": "corp=https://a/simple", "UV_INDEX_URL": "https://b"}, ["https://a/simple"]),
        ({"PIP_INDEX_URL": "https://a", "UV_INDEX": "x=https://b https://c/"}, ["https://a", "https://b", "https://c"]),
        ({"PIP_NO_INDEX": "1", "PIP_INDEX_URL": "https://a"}, []),
    ],
)
def test_environment_names_the_indexes(environ: dict[str, str], urls: list[str]) -> None:
    assert package_indexes(environ).urls == urls


def test_file_of_pip_is_read_and_the_environment_has_priority(home: Path) -> None:
    text = "[global]\nindex_url = https://a/simple\nextra-index-url =\n    https://b/\n    https://c%20d\n"
    (home / "pip.conf").write_text(f"{text}find-links = /wheels\ncert = /ca.pem\n", encoding="utf-8")
    assert package_indexes({}) == (["https://a/simple", "https://b", "https://c%20d"], ["/wheels"], "/ca.pem")
    assert package_indexes({"PIP_INDEX_URL": "https://z", "PIP_EXTRA_INDEX_URL": ""}).urls == ["https://z"]


def test_file_of_uv_is_read(home: Path) -> None:
    file = home / "uv.toml"
    file.write_text('[[index]]\nurl = "https://a"\ndefault = true\n[[index]]\nurl = "https://b"\n', encoding="utf-8")
    assert package_indexes({"UV_CONFIG_FILE": str(file)}).urls == ["https://a", "https://b"]
    file.write_text('index-url = "https://a"\nextra-index-url = ["https://b"]\nfind-links = ["/w"]', encoding="utf-8")
    assert package_indexes({"UV_CONFIG_FILE": str(file)})[:2] == (["https://a", "https://b"], ["/w"])


def test_file_that_cannot_be_read_is_one_line(home: Path) -> None:
    (home / "pip.conf").write_text("index-url = x", encoding="utf-8")
    with pytest.raises(ConfigError, match="pip's configuration cannot be read: "):
        package_indexes({})


def test_files_of_pip_end_with_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    from gateway.config.package_index import _pip_files

    *_, of_python, named = _pip_files({"PIP_CONFIG_FILE": "own.conf"})
    assert of_python.parent == Path(sys.prefix) and named == Path("own.conf")
    assert any(
        file.name == "pip.ini" and "roaming" in str(file) for file in _pip_files({"APPDATA": "roaming"}, "win32")
    )
