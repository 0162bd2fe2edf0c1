"""Which gateway a command finds, and which key it sends there."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.commands.running.find import Found, find_gateway
from gateway.commands.running.run_file import RunFile, announced
from gateway.errors import ConfigError, NotFound
from tests.commands.running.conftest import Command
from tests.support.processes import SCRIPTED

OWN_KEY, OTHER_KEY = "key-of-this-configuration", "key-of-the-other-configuration"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a configuration that has a key and port 8000."""
    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "config.toml", OWN_KEY)
    return tmp_path


def write_config(file: Path, key: str) -> Path:
    file.write_text(f'[server]\napi_keys = {{ me = "{key}" }}\n{SCRIPTED}', encoding="utf-8")
    return file


@contextmanager
def gateways(*ports: int, config_file: Path | None = None, host: str = "127.0.0.1") -> Iterator[None]:
    """Run files of this process."""
    with ExitStack() as stack:
        for port in ports:
            file = str(config_file or "")
            run = RunFile(url=f"http://127.0.0.1:{port}", host=host, port=port, config_file=file)
            stack.enter_context(announced(run))
        yield


def find(**arguments: object) -> Found:
    return find_gateway(argparse.Namespace(**{"config": None, **arguments}))


def test_configured_address_is_used_if_none_runs() -> None:
    found = find()
    assert (found.url, found.key, found.run) == ("http://127.0.0.1:8000", OWN_KEY, None)
    assert found.api_url == "http://127.0.0.1:8000/v1"


def test_only_running_gateway_is_found_on_another_port() -> None:
    with gateways(8400):
        found = find()
    assert found.url == "http://127.0.0.1:8400" and found.run and found.run.port == 8400


def test_gateway_on_configured_port_comes_before_others() -> None:
    with gateways(7999, 8000, 8400):
        assert find().url == "http://127.0.0.1:8000"


def test_choice_between_several_gateways_is_left_to_the_user() -> None:
    with gateways(8400, 8401), pytest.raises(NotFound) as refused:
        find()
    assert refused.value.message == (
        "No gateway runs on port 8000; these run: http://127.0.0.1:8400, http://127.0.0.1:8401. Choose one with --url."
    )


@pytest.mark.parametrize("mistake", ["[server]\nprot = 1\n", "[serve"])
def test_gateway_whose_file_has_a_mistake_now_is_found_by_the_file(here: Path, mistake: str) -> None:
    file = here / "config.toml"
    file.write_text(f"{SCRIPTED}{mistake}", encoding="utf-8")
    with gateways(8400), gateways(8401, config_file=file):
        assert find().url == "http://127.0.0.1:8401"


def test_port_names_a_running_gateway() -> None:
    with gateways(8400, 8401):
        assert find(port=8401).url == "http://127.0.0.1:8401"
    with gateways(8400), pytest.raises(NotFound, match=r"^No gateway runs on port 8401; one runs at .*:8400\.$"):
        find(port=8401)
    with pytest.raises(NotFound, match=r"^No gateway runs on port 8401; start one with `npu-gateway serve`\.$"):
        find(port=8401)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8400", "http://localhost:8400/v1", "http://[::1]:8400/v1/"])
def test_url_of_running_gateway_has_its_run_file_and_key(here: Path, url: str) -> None:
    with gateways(8400, config_file=write_config(here / "other.toml", OTHER_KEY)):
        found = find(url=url)
    assert found.run and found.key == OTHER_KEY and found.api_url == url.rstrip("/").removesuffix("/v1") + "/v1"


@pytest.mark.parametrize(
    "url",
    ["http://example.org:8000", "https://127.0.0.1.example.org", "http://127.0.0.1:8001/v1", "http://192.168.0.9:8000"],
)
def test_url_of_another_server_gets_no_key_of_the_configuration(url: str) -> None:
    with gateways(8400):
        assert find(url=url).key == ""
        assert find(url=url, api_key="given").key == "given"


def test_url_of_configured_address_gets_the_key() -> None:
    assert find(url="http://localhost:8000").key == OWN_KEY


def test_key_is_that_of_the_gateways_configuration(here: Path) -> None:
    other = write_config(here / "other.toml", OTHER_KEY)
    with gateways(8400, config_file=other):
        assert find().key == OTHER_KEY
        other.write_text("[serve", encoding="utf-8")  # with a mistake, since the gateway started
        assert find().key == OWN_KEY
        other.unlink()
        assert find().key == OWN_KEY


def test_mistake_in_configuration_does_not_hide_the_gateway(here: Path) -> None:
    (here / "config.toml").write_text("prot = 1\n", encoding="utf-8")
    with gateways(8400):
        assert find().url == "http://127.0.0.1:8400"
        with pytest.raises(ConfigError, match="prot"):
            find(config=here / "config.toml")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("127.0.0.1:8412", "write http://127.0.0.1:8412"),
        ("localhost:8412/v1", "write http://localhost:8412/v1"),
        ("[::1]:8412", "write http://[::1]:8412"),
        (":8412", "write http://127.0.0.1:8412"),
        ("8412", "write http://127.0.0.1:8412"),
        ("localhost", "write one such as 'http://127.0.0.1:"),
        ("ftp://localhost", "write one such as 'http://127.0.0.1:"),
        ("http://", "write one such as 'http://127.0.0.1:"),
        ("http://me:secret@localhost", "write one without a user name"),
        ("http://localhost:99999", "a port up to 65535"),
        ("", None),  # as if it was not given
    ],
)
def test_url_without_scheme_is_refused_with_the_right_spelling(text: str, right: str | None) -> None:
    if right is None:
        assert find(url=text).url == "http://127.0.0.1:8000"
        return
    with pytest.raises(ConfigError) as refused:
        find(url=text)
    assert refused.value.message.startswith(f"--url: {text!r} is not a URL: ") and right in refused.value.message


def test_commands_name_the_gateway_that_runs_elsewhere(command: Command) -> None:
    with gateways(8400):
        code, _, errors = command("launch", "codex", "--print", "--url", "http://127.0.0.1:1")
    assert code == 1
    assert errors == "npu-gateway: no server answers at http://127.0.0.1:1; one runs at http://127.0.0.1:8400\n"
