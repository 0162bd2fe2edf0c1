"""What a user writes after `pull` and `check`: every text is understood or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.errors import ConfigError
from gateway.pull.examine.target import open_target
from gateway.pull.spec import CatalogSpec, PathSpec, existing, read_spec

LONG = "a" * 5000


@pytest.mark.parametrize(
    "text",
    [
        "https://[x",
        "https://127.0.0.1:b/x.zip",
        "https://h:99999/x.zip",
        "https://h/\x01.zip",
        f"https://h/{LONG * 20}",
    ],
)
def test_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no address that can be downloaded"):
        read_spec(text)
    with pytest.raises(ConfigError, match="no address that can be downloaded"), open_target(text):
        pass


@pytest.mark.parametrize("text", ["~unknown-user/m.zip", f"{LONG}.zip", f"/{LONG}", "m\0.zip"])
def test_path_that_the_system_refuses_is_no_file(text: str) -> None:
    assert existing(text) is None
    with pytest.raises(ConfigError, match="There is no file or folder"):
        read_spec(text)
    with pytest.raises(ConfigError, match="There is no model, file or folder"), open_target(text):
        pass


def test_long_name_is_one_of_the_catalog() -> None:
    assert read_spec(LONG) == CatalogSpec(LONG)


def test_folder_is_found_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    assert read_spec("m") == PathSpec(tmp_path / "m")
