"""The servers of upstream models in config.toml: their keys, and the message of each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.config.file import all_mistakes, has_keys, load_config
from gateway.config.tables import UpstreamModel, UpstreamTarget
from gateway.config.upstream import missing_key, servers_of
from gateway.errors import ConfigError


def written(folder: Path, table: str) -> Path:
    file = folder / "config.toml"
    file.write_text(f'[models.m]\nengine = "upstream"\n{table}\n', encoding="utf-8")
    return file


def servers(file: Path, **environ: str) -> list[UpstreamTarget]:
    model = load_config(file, environ).models["m"]
    assert isinstance(model, UpstreamModel)
    return [*servers_of("m", model)]


def test_one_url_is_one_server(tmp_path: Path) -> None:
    [server] = servers(written(tmp_path, 'url = "http://h/v1"\napi_key = "k"'))
    assert server == UpstreamTarget(url="http://h/v1", upstream_model="m", api_key="k")


def test_each_target_has_its_own_values_or_those_of_the_model(tmp_path: Path) -> None:
    table = """
        upstream_model = "big"
        api_key = "shared"
        targets = ["http://a/v1", { url = "http://b/v1", upstream_model = "x", weight = 2, api_key_env = "B" }]
    """
    first, second = servers(written(tmp_path, table), B=" key-of-b\n")
    assert first == UpstreamTarget(url="http://a/v1", upstream_model="big", api_key="shared")
    assert (second.upstream_model, second.weight, second.api_key) == ("x", 2.0, "key-of-b")


def test_environment_has_the_list_of_urls(tmp_path: Path) -> None:
    file = written(tmp_path, "")
    found = servers(file, NPU_GATEWAY_MODELS_M_TARGETS="http://a/v1, http://b/v1")
    assert [server.url for server in found] == ["http://a/v1", "http://b/v1"]


def test_key_is_read_from_a_file_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("\ufeffsecret-1\n", encoding="utf-8")
    file = written(tmp_path, 'targets = [{ url = "http://a/v1", api_key_file = "key" }]')
    before = load_config(file, {}).models
    assert servers(file)[0].api_key == "secret-1"
    (tmp_path / "key").write_text("secret-2", encoding="utf-8")
    assert load_config(file, {}).models != before, "a reload sees the new key"


def test_key_in_place_of_the_name_of_its_variable_is_not_shown(tmp_path: Path) -> None:
    key = "sk_key_of_the_rack"
    [server] = servers(written(tmp_path, f'url = "http://a/v1"\napi_key_env = "{key}"'))
    assert "belongs in api_key" in missing_key(server) and key not in missing_key(server)


@pytest.mark.parametrize("key", ['api_key_env = "RACK"', 'api_key_file = "none"', 'api_key_file = "."'])
def test_key_that_is_not_there_stops_only_the_engine(tmp_path: Path, key: str) -> None:
    """`npu-gateway ps` may run where the variable of the service is not set."""
    [server] = servers(written(tmp_path, f'url = "http://a/v1"\n{key}'))
    assert server.api_key == ""
    assert re.search("api_key_(env: .*'RACK' is not set|file: .* cannot be read)", missing_key(server))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('targets = [{ url = "http://a", wieght = 2 }]', "targets[0].wieght: unknown key; did you mean 'weight'?"),
        ('targets = ["http://a", { uri = "http://b" }]', "targets[1].uri: unknown key; did you mean 'url'?"),
        (
            'targets = [{ url = "http://a", model = "x" }]',
            "targets[0].model: unknown key; there is url, upstream_model,",
        ),
        ('targets = [{ url = "http://a", weight = 0 }]', "targets[0].weight: expected a number above 0, got 0"),
        ('targets = [{ url = "http://a", weight = "1" }]', "targets[0].weight: expected a number, got text"),
        ('targets = "http://a"', "targets: expected a list, got text"),
        ("targets = [5]", "targets[0]: expected text or a table, got a whole number"),
        ("targets = []", "url: engine = 'upstream' needs the server's URL"),
        ("targets = [{}]", "targets[0].url: engine = 'upstream' needs the server's URL"),
        ('targets = ["h:80"]', "targets[0].url: engine = 'upstream' needs the server's URL"),
        (
            'targets = ["http://u:p@h"]',
            "targets[0].url: engine = 'upstream' needs the server's URL, without a user name",
        ),
        ('url = "http://a"\ntargets = ["http://b"]', "targets: has every server of the model; remove url"),
        ('targets = ["http://a/v1", "http://a/v1/"]', "targets[1].url: 'http://a/v1/' is there twice"),
        ('url = "http://a"\napi_key = "k"\napi_key_env = "K"', "has api_key and api_key_env; keep one of them"),
        (
            'targets = [{ url = "http://a", api_key_env = "K", api_key_file = "k" }]',
            "targets[0]: has api_key_env and api_key_file; keep one of them",
        ),
        (
            'targets = [{ url = "http://a", api_key = "a b" }]',
            "targets[0].api_key: the key of 'api_key' must be printable",
        ),
        ('url = "http://a"\napi_key_file = "a\\u0000b"', "api_key_file: a path has no NUL character"),
    ],
)
def test_mistake_is_one_line_with_its_item(tmp_path: Path, table: str, message: str) -> None:
    file = written(tmp_path, table)
    _, found = all_mistakes(file, {})
    assert len(found) == 1 and message in found[0], found
    with pytest.raises(ConfigError):
        load_config(file, {})


def test_no_message_has_a_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret key", encoding="utf-8")
    table = 'targets = [{ url = "http://a", api_key_file = "key" }, { url = "http://b", api_key_env = "B" }]'
    _, found = all_mistakes(written(tmp_path, table), {"B": "secret\x7f"})
    assert len(found) == 2 and not any("secret" in message for message in found)


def test_key_of_a_target_makes_the_file_secret(tmp_path: Path) -> None:
    assert has_keys(written(tmp_path, 'targets = ["http://a", { url = "http://b", api_key = "k" }]'))
    assert not has_keys(written(tmp_path, 'targets = ["http://a", { url = "http://b", api_key_env = "K" }]'))
