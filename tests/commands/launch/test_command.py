"""`npu-gateway launch`: what it prints and writes for each client, and the pages in docs/clients."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.commands.launch.client import Folders, Target
from gateway.commands.launch.clients import CLIENTS
from gateway.commands.launch.show import hidden, shown
from gateway.config.tables import ScriptedModel, ServerConfig
from tests.support.paths import ROOT
from tests.support.processes import gateway
from tests.support.server import Running, config_of, script_of, serving

KEY = "a-long-random-text"
PAGES = ROOT / "docs" / "clients"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    models = {
        "smollm2-135m": ScriptedModel(script=script_of(context_length=8192), aliases=("gpt-4o-mini",)),
        "broken": ScriptedModel(script=script_of(load_error="the bundle is missing")),
    }
    with serving(config_of(models, ServerConfig(api_keys={"me": KEY}))) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder and no configuration of a gateway."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("NPU_GATEWAY_", "XDG_", "CODEX_", "CLINE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launch(server: Running, *arguments: str) -> int:
    return main(["launch", arguments[0], "--url", server.url, "--api-key", KEY, *arguments[1:]])


def files_in(home: Path) -> list[str]:
    return sorted(file.relative_to(home).as_posix() for file in home.rglob("*") if file.is_file())


@pytest.mark.skipif(sys.platform != "linux", reason="the pages show Linux's paths")
@pytest.mark.parametrize("name", CLIENTS)
def test_print_equals_the_page_and_changes_nothing(
    name: str, server: Running, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(server, name, "--print", "--show-key") == 0
    printed = capsys.readouterr().out.replace(server.url, "http://127.0.0.1:8000")
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert f"```text\n{printed}```" in page
    assert f"npu-gateway launch {name}\n" in page and CLIENTS[name].install in page
    assert files_in(home) == []


@pytest.mark.parametrize("name", CLIENTS)
def test_page_names_the_measured_prompt(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    tokens = CLIENTS[name].prompt_tokens
    assert f"| prompt | about {tokens} tokens" in page if tokens else "| prompt |" in page


def test_index_lists_every_client() -> None:
    index = (PAGES / "index.md").read_text(encoding="utf-8")
    assert [name for name in CLIENTS if f"({name}.md)" not in index] == []
    assert {page.stem for page in PAGES.glob("*.md")} - {"index"} == set(CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
def test_key_is_hidden_unless_it_is_wanted(
    name: str, server: Running, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(server, name, "--print")
    printed = capsys.readouterr().out
    assert KEY not in printed and "a-lo..." in printed


def test_key_is_hidden_in_the_advice(server: Running, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = home / ".config" / "opencode" / "opencode.json"
    settings.parent.mkdir(parents=True)
    settings.write_text("{broken", encoding="utf-8")
    launch(server, "opencode", "--no-start")
    hidden_advice = capsys.readouterr().err
    launch(server, "opencode", "--no-start", "--show-key")
    assert KEY not in hidden_advice and '"apiKey": "a-lo..."' in hidden_advice
    assert f'"apiKey": "{KEY}"' in capsys.readouterr().err


def test_short_key_is_hidden_as_a_whole() -> None:
    assert (hidden("secret"), hidden("0123456789abcdef")) == ("...", "0123...")


@pytest.mark.parametrize("name", CLIENTS)
def test_windows_folders(name: str, tmp_path: Path) -> None:
    data = tmp_path / "AppData" / "Roaming"
    folders = Folders(home=tmp_path, environ={"APPDATA": str(data)}, platform="win32")
    setup = CLIENTS[name].setup(Target(url="http://u", key="", model="m", context=4096), folders)
    expected = {"zed": data / "Zed" / "settings.json", "llm": data / "io.datasette.llm" / "extra-openai-models.yaml"}
    if name in expected:
        assert [file.path for file in setup.files] == [expected[name]]
    assert all(file.path.is_relative_to(tmp_path) for file in setup.files)


@pytest.mark.parametrize("name", CLIENTS)
def test_gateway_can_be_started_from_the_client(name: str, tmp_path: Path) -> None:
    """A variable that begins with NPU_GATEWAY_ would be its configuration."""
    folders = Folders(home=tmp_path, environ={}, platform="linux")
    setup = CLIENTS[name].setup(Target(url="http://u", key=KEY, model="m", context=4096), folders)
    assert [variable for variable in setup.environment if variable.startswith("NPU_GATEWAY_")] == []


def test_files_are_merged_and_a_second_run_changes_nothing(
    server: Running, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = home / ".qwen" / "settings.json"
    settings.parent.mkdir()
    settings.write_text('{\n  // mine\n  "ui": {"theme": "dark"}\n}\n', encoding="utf-8")
    for _ in range(2):
        assert launch(server, "qwen", "--no-start") == 0
    assert "// mine" in settings.read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines()[-1] == f"{settings}: is up to date"
    assert len(files_in(home)) == 2  # the file and its copy


def test_unloaded_model_is_loaded_by_the_client(
    server: Running, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.http(headers={"authorization": f"Bearer {KEY}"}) as http:
        assert http.post("/v1/models/smollm2-135m/unload").status_code == 200
        assert launch(server, "codex", "--print") == 0
        assert "model_context_window = 8192" in capsys.readouterr().out
        assert http.post("/v1/models/smollm2-135m/load").status_code == 200


def test_program_in_the_current_folder_gets_no_key(
    server: Running, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Windows looks there first; elsewhere with `.` in PATH."""
    monkeypatch.setenv("PATH", ".")
    program = home / ("opencode.exe" if sys.platform == "win32" else "opencode")
    program.touch(mode=0o755)
    assert launch(server, "opencode") == 1
    assert "lies in the current folder" in capsys.readouterr().err and files_in(home) == [program.name]


def test_missing_client_is_one_sentence_and_changes_nothing(
    server: Running, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(home))
    assert launch(server, "opencode") == 1
    errors = capsys.readouterr().err.splitlines()
    assert "opencode is not installed" in errors[-1] and "npm install -g opencode-ai" in errors[-1]
    assert files_in(home) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "smolm2-135m"), "did you mean 'smollm2-135m'?"),
        (("--model", "broken"), "broken is not ready"),
        (("--url", "http://127.0.0.1:9"), "npu-gateway serve"),
        (("--api-key", "wrong"), "key"),
    ],
)
def test_gateway_that_cannot_serve_is_one_sentence(
    arguments: tuple[str, ...], message: str, server: Running, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(server, "claude", "--print", *arguments) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and message in captured.err


def test_user_learns_what_the_model_lacks(server: Running, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "config.toml").write_text('[models."smollm2-135m"]\nengine = "scripted"\n', encoding="utf-8")
    launch(server, "claude", "--print")
    assert f"{CLIENTS['claude'].prompt_tokens} tokens" in capsys.readouterr().err
    launch(server, "llm", "--print")
    assert 'max_tokens = "context"' in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="a program for the test is a script with #!")
def test_client_is_started_with_its_settings(server: Running, home: Path) -> None:
    program = home / "bin" / "claude"
    program.parent.mkdir()
    code = (
        f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([sys.argv[1:], dict(os.environ)]))\nsys.exit(7)\n"
    )
    program.write_text(code, encoding="utf-8")
    program.chmod(0o755)
    arguments = ("launch", "claude", "--url", server.url, "--api-key", KEY, "--", "-p", "hi there")
    done = gateway(*arguments, cwd=home, variables={"HOME": str(home), "PATH": str(program.parent)})
    assert done.returncode == 7, done.stderr
    argv, environ = json.loads(done.stdout)
    assert argv == ["--model", "smollm2-135m", "-p", "hi there"]
    assert (environ["ANTHROPIC_BASE_URL"], environ["ANTHROPIC_AUTH_TOKEN"]) == (server.url, KEY)
    assert environ["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == "8192"


def test_shown_paths_are_relative_to_the_home_folder() -> None:
    home = Path("/home/me")
    folders = Folders(home=home, environ={}, platform="linux")
    setup = CLIENTS["continue"].setup(Target(url="http://u", key="", model="m", context=4096), folders)
    text = shown(setup, home, "")
    assert "# file ~/.continue/config.yaml\n" in text and text.endswith("cn --config ~/.continue/config.yaml\n")
