"""`npu-gateway config`: init never overwrites, path names the file, check prints every mistake."""

from __future__ import annotations

import argparse
import os
import stat
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from gateway import cli
from gateway.commands.options import add_provider
from gateway.config import find as config_find
from gateway.config.file import load_config
from gateway.config.find import user_file
from gateway.config.toml_file import read_toml
from tests.support.paths import ROOT
from tests.support.terminal import Terminal

ONE_MODEL = '[models.a]\npath = "a"\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder and an empty data folder."""
    for variable in ("XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(variable, str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_init_writes_the_delivered_file_for_this_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "init"]) == 0
    file = user_file()
    assert capsys.readouterr().out == f"{file} is written. Every key: docs/configuration.md.\n"
    assert cli.main(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    before, after = load_config(ROOT / "config.toml"), load_config()
    assert before == after  # the models are where they were
    assert file.read_text(encoding="utf-8").count("#") == (ROOT / "config.toml").read_text(encoding="utf-8").count("#")
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="Windows forbids these names")
def test_init_writes_any_folder_as_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / 'it\'s "x"\n\\ü'
    base.mkdir()
    delivered = ROOT / "config.toml"
    monkeypatch.setattr(config_find, "delivered_file", lambda environ=None: (delivered, base))
    assert cli.main(["config", "init", "own.toml"]) == 0
    assert read_toml(Path("own.toml"))["models_dir"] == str(base / "models")


def test_init_of_an_installed_package_keeps_the_folder_of_the_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an installed package, config.toml lies with the module, and the models are in the data folder."""
    package = tmp_path / "site" / "gateway"
    package.mkdir(parents=True)
    (package / "config.toml").write_bytes((ROOT / "config.toml").read_bytes())
    monkeypatch.setattr(config_find, "__file__", str(package / "config" / "find.py"))
    before = load_config()
    assert cli.main(["config", "init"]) == cli.main(["config", "init", "own.toml"]) == 0
    assert user_file().read_bytes() == (package / "config.toml").read_bytes()
    assert before == load_config() == load_config(Path("own.toml"))


def test_init_never_overwrites(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = here / "own.toml"
    file.write_text("mine", encoding="utf-8")
    assert cli.main(["config", "init", "own.toml"]) == 1
    assert file.read_text(encoding="utf-8") == "mine"
    assert capsys.readouterr().err == (
        f"npu-gateway: {file} exists already and is not changed. Edit it, or give another FILE.\n"
    )
    (here / "link.toml").symlink_to(here / "nowhere")
    assert cli.main(["config", "init", "link.toml"]) == 1
    assert not (here / "nowhere").exists()
    capsys.readouterr()
    assert cli.main(["config", "init", "own.toml/x.toml"]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_init_into_a_folder_says_which_file_is_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "sub").mkdir()
    assert cli.main(["config", "init", "sub"]) == 0
    out = capsys.readouterr().out
    assert f"{here / 'sub' / 'config.toml'} is written." in out
    assert f"Here {ROOT / 'config.toml'} is read (delivered with npu-gateway); the new one with --config FILE." in out


def test_init_adds_models_of_other_programs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "init", "new.toml", "--installed"]) == 0
    assert "# No model of another program was found" in (here / "new.toml").read_text(encoding="utf-8")
    load_config(here / "new.toml", {})


@pytest.mark.parametrize("terminal", [200], indirect=True)
def test_path_in_a_terminal_names_the_whole_search(here: Path, terminal: Terminal) -> None:
    (here / "config.toml").write_text('baseURL = "https://example.org"\n', encoding="utf-8")
    with redirect_stdout(terminal):
        assert cli.main(["config", "path"]) == 0
    lines = terminal.lines()
    assert lines[0] == str(ROOT / "config.toml")
    rows = [line.split(maxsplit=1)[1] for line in lines[3:]]
    assert [row.partition("  ")[0] for row in rows] == [
        "--config FILE",
        "environment variable NPU_GATEWAY_CONFIG",
        "the current folder",
        "your data folder",
        "delivered with npu-gateway",
    ]
    assert "of another program: it has no [models] table" in rows[2] and rows[-1].endswith("used")


def test_path_of_a_file_that_does_not_exist_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "path", "--config", "nowhere.toml"]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{Path('nowhere.toml').absolute()}\n" and "config init FILE" in captured.err


@pytest.mark.parametrize(("word", "hint"), [("help", "'help'. `npu"), ("chekc", "'chekc'; did you mean 'check'? `npu")])
def test_mistyped_part_of_config_names_the_nearest(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["config", word])
    assert f"there is no command {hint}-gateway config --help` lists the commands." in capsys.readouterr().err


def test_check_prints_each_mistake(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "config.toml").write_text(f'[server]\nprot = 1\nport = "x"\n{ONE_MODEL}fallback = "b"\n', encoding="utf-8")
    assert cli.main(["config", "check"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "config.toml: [server] prot: unknown key; did you mean 'port'?",
        "config.toml: [server] port: expected a whole number, got text",
        "config.toml: [models.a] fallback: there is no model 'b'",
        "npu-gateway: 3 mistakes",
    ]


def test_check_prints_what_is_configured(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = here / "c.toml"
    file.write_text(
        'default_model = "a"\n[server]\nport = 9000\napi_keys = { me = "short" }\n'
        f'{ONE_MODEL}aliases = ["x", "y"]\nfallback = "far"\nprovider = "npu"\n'
        '[models.far]\nengine = "upstream"\nurl = "http://127.0.0.1:1/v1"\n'
        '[models.rack]\nengine = "upstream"\ntargets = ["http://a/v1", "http://b/v1"]\napi_key_env = "RACK_KEY"\n',
        encoding="utf-8",
    )
    file.chmod(0o600)
    assert cli.main(["config", "check", "c.toml"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"ok  {file}",
        "  http://127.0.0.1:9000/v1, 1 API key",
        f"  a: on the NPU, {here / 'models' / 'a'}, also as x, y, fallback far",
        "  far: on the server http://127.0.0.1:1/v1",
        "  rack: on 2 servers",
        "  requests for an unknown model get a",
        f"  note: a: no folder {here / 'models' / 'a'}, and no source",
        "  note: rack: api_key_env: the environment variable 'RACK_KEY' is not set; set it for the gateway",
        "  note: the API key 'me' has fewer than 16 characters and can be guessed",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "nowhere.toml: the file does not exist"),
        (b"x = cpu\n", "nowhere.toml: line 1: text needs quotes: x = 'cpu'"),
        (b"\xff\xfe[\0m\0", "nowhere.toml: not UTF-8 text (byte 0); save it as UTF-8"),
    ],
)
def test_check_of_a_file_that_cannot_be_read(
    here: Path, content: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (here / "nowhere.toml").write_bytes(content)
    assert cli.main(["config", "check", "nowhere.toml"]) == 2
    assert capsys.readouterr().err == f"npu-gateway: {message}\n"


@pytest.mark.parametrize(("name", "code"), [("npu", 0), ("qnn", 0), ("gpu", 2)])
def test_provider_option_takes_npu(here: Path, name: str, code: int) -> None:
    parser = argparse.ArgumentParser()
    add_provider(parser)
    if code:
        with pytest.raises(SystemExit):
            parser.parse_args(["--provider", name])
    else:
        assert parser.parse_args(["--provider", name]).provider == "qnn"
