"""Which config.toml is read: the order, and the files of other programs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import IO

import pytest

from gateway.config import find
from gateway.config.file import load_config
from gateway.config.find import find_config, search
from gateway.errors import ConfigError
from tests.support.paths import ROOT

ONE_MODEL = '[models.a]\npath = "a"\n'
HUGO = 'baseURL = "https://example.org"\ntitle = "x"\n[server]\n[[server.headers]]\nfor = "/**"\n'
STREAMLIT = "[server]\nport = 8501\nheadless = true\n"
CARGO = '[build]\ntarget = "x"\n[alias]\nb = "build"\n'

CODEX = 'model = "gpt-5"\n[model_providers.x]\nname = "x"\n[module]\na = 1\n'


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The current folder is empty, and so is the user's data folder."""
    (tmp_path / "here").mkdir()
    (tmp_path / "data" / "npu-gateway").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return {name: str(tmp_path / "data") for name in ("XDG_DATA_HOME", "LOCALAPPDATA")}


@pytest.mark.skipif("sys.platform == 'darwin'", reason="no variable moves the data folder of macOS")
def test_find_config_prefers_option_then_variable_then_folder_then_user(
    environ: dict[str, str], tmp_path: Path
) -> None:
    named, user = tmp_path / "named.toml", tmp_path / "data" / "npu-gateway" / "config.toml"
    assert find_config(None, environ) == (ROOT / "config.toml", ROOT)
    user.write_text(ONE_MODEL, encoding="utf-8")
    assert find_config(None, environ) == (user, user.parent)
    Path("config.toml").write_text(ONE_MODEL, encoding="utf-8")
    assert find_config(None, environ) == (Path("config.toml"), tmp_path / "here")
    environ["NPU_GATEWAY_CONFIG"] = str(named)
    assert find_config(None, environ) == (named, tmp_path)
    assert find_config(Path("x/y.toml"), environ) == (Path("x/y.toml"), tmp_path / "here" / "x")


def test_search_names_each_file_and_uses_one(environ: dict[str, str]) -> None:
    Path("config.toml").write_text(HUGO, encoding="utf-8")
    found = search(None, environ)
    assert [each.why for each in found] == ["the current folder", "your data folder", "delivered with npu-gateway"]
    assert [each.state for each in found] == ["of another program: it has no [models] table", "no file", "used"]
    assert [each.state for each in search(Path("a"), environ)] == ["used", "", "", ""]


@pytest.mark.parametrize("text", [HUGO, STREAMLIT, CARGO, CODEX, "title = [\n", "a = \udcff"])
def test_file_of_another_program_is_passed_over_with_one_line(
    environ: dict[str, str], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    find._warn.cache_clear()
    Path("config.toml").write_text(text, encoding="utf-8", errors="surrogateescape")
    with caplog.at_level(logging.WARNING):
        load_config(None, environ)
        load_config(None, environ)
    [record] = caplog.records
    assert record.getMessage() == (
        f"{Path('config.toml').absolute()} is of another program: it has no [models] table. It is passed over; "
        f"--config {Path('config.toml').absolute()} reads it."
    )


@pytest.mark.parametrize(
    "text",
    [
        ONE_MODEL,
        '[models.a]\npath = "C:\\new"\n',  # with mistakes it is ours too
        "[models.a]\nx = cpu\n",
        "models = { a = { path = 'x' } }\n",
        "[server]\nport = 9000\n",
        "[model.a]\nx = 1\n",  # the message has the right spelling
        "[Modles.a]\nx = 1\n",
        "[breaker]\n rate = \n",
        "# nothing yet\n",
    ],
)
def test_file_of_this_program_is_used(environ: dict[str, str], text: str) -> None:
    Path("config.toml").write_text(text, encoding="utf-8")
    assert find_config(None, environ)[0] == Path("config.toml")


def test_folder_with_the_name_of_the_file_is_passed_over(environ: dict[str, str]) -> None:
    Path("config.toml").mkdir()
    assert find_config(None, environ) == (ROOT / "config.toml", ROOT)


def test_file_that_cannot_be_read_is_not_passed_over(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **options: object) -> IO[bytes]:
        raise PermissionError(13, "Permission denied")

    Path("config.toml").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ConfigError, match=r"config.toml: cannot be read: Permission denied"):
        load_config(None, environ)
