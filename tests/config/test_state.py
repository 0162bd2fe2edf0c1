"""The table [state]."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.file import all_mistakes, load_config
from gateway.errors import ConfigError

MODEL = '[models.m]\nengine = "scripted"\n'


def written(folder: Path, text: str) -> Path:
    file = folder / "config.toml"
    file.write_text(text + MODEL, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://u:pass-word@h/d", "sqlite:///FILE or postgresql://"),
        ("sqlite:///", "path of a file"),
        ("sqlite://pass-word", "sqlite:///FILE or postgresql://"),
        ("postgresql://h/d", "USER:PASSWORD@HOST"),
        ("postgresql://u:pass-word@h:port/d", "USER:PASSWORD@HOST"),
        ("postgresql://u:pass-word@h/d?ssl=pass-word", "can have the parameters"),
        ("postgresql://u:pass-word@h/d?sslmode=pass-word", "must be one of disable"),
    ],
)
def test_wrong_url_is_one_mistake_without_the_password(tmp_path: Path, url: str, message: str) -> None:
    file = written(tmp_path, f'[state]\nurl = "{url}"\n')
    _, mistakes = all_mistakes(file, {})
    [line] = mistakes
    assert "[state] url" in line and message in line and "pass-word" not in line
    with pytest.raises(ConfigError) as info:
        load_config(written(tmp_path, ""), {"NPU_GATEWAY_STATE_URL": url})
    assert "pass-word" not in str(info.value)


def test_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, '[state]\nurl = "sqlite:///shared.sqlite"\n'), {})
    assert config.state.url == f"sqlite:///{tmp_path / 'shared.sqlite'}"
    absolute = f"sqlite:///{tmp_path / 'x' / 'shared.sqlite'}"
    assert load_config(written(tmp_path, f"[state]\nurl = '{absolute}'\n"), {}).state.url == absolute


def test_keys_of_the_database_are_enough_for_other_machines(tmp_path: Path) -> None:
    text = '[server]\nhost = "0.0.0.0"\n[limits.keys.anna]\nrequests_per_minute = 5\n[state]\nkeys = '
    assert load_config(written(tmp_path, text + "true\n"), {}).needs_key
    _, mistakes = all_mistakes(written(tmp_path, text + "false\n"), {})
    assert len(mistakes) == 2
