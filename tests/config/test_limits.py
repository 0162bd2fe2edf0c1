"""The limits of API keys in config.toml: what a key has, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.file import all_mistakes, load_config
from gateway.config.limits import limit_lines, limit_warnings, limits_of
from gateway.config.tables import KeyLimits

KEYS = '[server]\napi_keys = { laptop = "a-long-random-text", "näm e.x" = "another-random-text" }\n'
MODEL = '[models.small]\nengine = "scripted"\naliases = ["tiny"]\n[models.big]\nengine = "scripted"\n'


def mistakes(folder: Path, text: str) -> list[str]:
    file = folder / "config.toml"
    file.write_text(KEYS + text + MODEL, encoding="utf-8")
    return [message.removeprefix(f"{file}: ") for message in all_mistakes(file, {})[1]]


def test_key_has_its_own_limits_and_the_others_of_the_table(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    text = '[limits]\nrequests_per_minute = 60\nmodels = ["small"]\n'
    text += '[limits.keys."näm e.x"]\nrequests_per_minute = "unlimited"\ntokens_per_minute = 5\nmodels = ["*"]\n'
    file.write_text(KEYS + text + MODEL, encoding="utf-8")
    limits = load_config(file, {"NPU_GATEWAY_LIMITS_CONCURRENT_REQUESTS": "2"}).limits
    assert limits_of(limits, "laptop") == KeyLimits(
        requests_per_minute=60, tokens_per_minute="unlimited", concurrent_requests=2, models=("small",)
    )
    assert limits_of(limits, "näm e.x") == KeyLimits(
        requests_per_minute="unlimited", tokens_per_minute=5, concurrent_requests=2, models=("*",)
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits]\nrequests_per_minute = 0\n", "[limits] requests_per_minute: expected a whole number of at least 1"),
        ('[limits]\ntokens_per_minute = "many"\n', "[limits] tokens_per_minute: 'many' is not one of a number, unlim"),
        ('[limits]\nmodels = ["tiny"]\n', "[limits] models: there is no model 'tiny'; it is an alias, write 'small'"),
        ('[limits.keys.laptop]\nmodels = ["smal"]\n', "[limits.keys.laptop] models: there is no model 'smal'; did you"),
        ("[limits.keys.laptp]\n", "[limits.keys.laptp]: there is no API key with this name; did you mean 'laptop'?"),
        ("[limits.keys.a-long-random-text]\n", "[limits.keys]: a table has a key as its name; write the name of"),
        ("[limits.keys]\nlaptop = 5\n", "[limits] keys: 'laptop' must be a table, written [limits.keys.laptop]"),
        (
            '[limits.keys."näm e.x"]\ntoken_per_minute = 5\n',
            "[limits.keys.\"näm e.x\"] token_per_minute: unknown key; did you mean 'tokens_per_minute'?",
        ),
        ("[limits.keys.laptop]\nconcurrent_requests = 1.5\n", "[limits.keys.laptop] concurrent_requests: expected a"),
    ],
)
def test_mistake_is_one_line_with_table_and_key(tmp_path: Path, text: str, message: str) -> None:
    [found] = mistakes(tmp_path, text)
    assert found.startswith(message)
    assert "random-text" not in found.replace("a-long-random-text]", "")


def test_key_of_the_environment_can_have_limits_where_it_is_not_set(tmp_path: Path) -> None:
    assert mistakes(tmp_path, "[limits.keys.environment]\nrequests_per_minute = 5\n") == []


def test_limits_are_shown_in_words_with_a_warning_of_those_that_refuse_every_request(tmp_path: Path) -> None:
    text = '[limits]\nrequests_per_minute = 60\ntokens_per_minute = 64\nmodels = ["small"]\n'
    text += '[limits.keys.laptop]\nrequests_per_minute = "unlimited"\ntokens_per_minute = 1024\nmodels = ["*"]\n'
    text += '[limits.keys."näm e.x"]\ntokens_per_minute = "unlimited"\nconcurrent_requests = 2\nmodels = []\n'
    file = tmp_path / "config.toml"
    file.write_text(KEYS + text + MODEL + 'max_tokens = "context"\n', encoding="utf-8")
    config = load_config(file, {})
    assert list(limit_lines(config)) == [
        "each API key: 60 requests per minute, 64 tokens per minute, only small",
        "API key laptop: 1024 tokens per minute",
        "API key näm e.x: 60 requests per minute, 2 at once, no model",
    ]
    assert list(limit_warnings(config)) == [
        "[limits] tokens_per_minute = 64 refuses every request for small that sends no max_tokens: its answer takes 64",
        "[limits.keys.laptop] tokens_per_minute = 1024 refuses every request for big that sends no max_tokens: its "
        "answer takes 1024",
    ]


def test_limits_are_for_each_key_of_the_database(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[state]\nkeys = true\n[limits]\nrequests_per_minute = 60\n" + MODEL, encoding="utf-8")
    assert list(limit_lines(load_config(file, {}))) == ["each API key: 60 requests per minute"]


def test_gateway_without_limits_says_nothing_of_them(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(KEYS + MODEL, encoding="utf-8")
    assert [*limit_lines(load_config(file, {})), *limit_warnings(load_config(file, {}))] == []
