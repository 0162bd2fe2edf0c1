"""`npu-gateway catalog` against a server that plays AI Hub's bucket and the Hub."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from gateway import cli
from gateway.commands.models.catalog import details, installed_lines, write_groups
from gateway.commands.tables import cells
from gateway.pull.catalog.entry import Entry
from gateway.pull.installed.programs import program_folders
from gateway.pull.installed.search import find_installed
from gateway.qnn.chips import chip_named
from tests.support.model_index import ai_hub_model, publish, put_hub_list
from tests.support.model_server import ModelServer, serve_models
from tests.support.other_programs import write_everything
from tests.support.terminal import Terminal


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelServer]:
    with serve_models() as server:
        monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", server.url)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
        publish(
            server,
            ai_hub_model(server, "Qwen3-4B", speed=21.2),
            ai_hub_model(server, "Llama-v3.2-3B-Instruct", shared=False),
        )
        put_hub_list(server, "qualcomm")
        put_hub_list(server, "llmware")
        server.repos["yichqian/geniex-qairt-models"] = {}
        yield server


def catalog(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["catalog", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_pipe_gets_fields_between_tabs(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = catalog(capsys, "--chip", "x-elite")
    assert (code, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()]
    assert {len(row) for row in rows} == {15}
    row = next(row for row in rows if row[0] == "qwen3-4b")
    assert row[1:14] == [
        *("x-elite", "ready", "4.0", "w4a16", "8192", "100", "genie", "proven", "apache-2.0"),
        *("21.2", "100.0", "3200.0", "AI Hub"),
    ]
    assert row[14].endswith(".zip")
    assert [row[2] for row in rows if row[0] == "llama3.2-3b"] == ["export", "ready"]


def test_json_has_every_field(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = catalog(capsys, "--chip", "x2-elite", "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 0
    assert (found["chip"], found["problems"]) == ("x2-elite", [])
    assert [model["name"] for model in found["models"]] == ["llama3.2-3b", "qwen3-4b"]
    for model in found["models"]:
        assert set(model) == {*Entry.__struct_fields__, "proven_by"}
        assert model["chip"] == "x2-elite"


def test_name_shows_one_model(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = catalog(capsys, "Llama-v3.2-3B-Instruct", "--chip", "x2-elite", "--json")
    (model,) = json.loads(out)["models"]
    assert code == 0
    assert "--chipset qualcomm-snapdragon-x2-elite" in model["export"]


def test_chip_of_this_machine_is_the_default(server: ModelServer, capsys: pytest.CaptureFixture[str], npu: Any) -> None:
    _, out, _ = catalog(capsys, "--json")
    assert json.loads(out)["chip"] == "x-elite"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chip", "x3-elite"], "There is no chip 'x3-elite'. The chips are x-elite, x-plus, x2-elite; did you mean"),
        (["qwen3-4b", "--installed"], "--installed lists the models of all programs. Leave out NAME."),
        (["qwen3-4", "--chip", "x-elite"], "There is no model 'qwen3-4' in the catalog. Did you mean qwen3-4b?"),
    ],
)
def test_mistake_is_exit_code_2(
    server: ModelServer, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, out, err = catalog(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_no_server_is_exit_code_1_with_the_list(
    server: ModelServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPU_GATEWAY_MODEL_SERVER", "http://127.0.0.1:1")
    code, out, err = catalog(capsys, "--chip", "x-elite")
    assert code == 1
    assert "AI Dev Home" in out
    assert [line[: line.index(":", 13)] for line in err.splitlines()] == [
        "npu-gateway: AI Hub could not be read",
        "npu-gateway: Hugging Face could not be read",
    ]


def test_one_server_that_fails_is_one_line(server: ModelServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.files = {path: content for path, content in server.files.items() if not path.startswith("api/")}
    server.repos.clear()
    code, out, err = catalog(capsys, "--chip", "x-elite", "--refresh")
    assert code == 0
    assert "qwen3-4b" in out
    assert len(err.splitlines()) == 1 and "Hugging Face" in err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with models of every program."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    write_everything(tmp_path)
    return tmp_path


def test_installed_models_are_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = catalog(capsys, "--installed", "--json")
    found = [model for model in json.loads(out)["installed"] if model["path"].startswith(str(home))]
    assert (code, err, len(found)) == (0, "", 12)
    assert set(found[0]) == {"program", "name", "path", "layout", "bytes", "table", "problem"}


def test_installed_models_are_fields_between_tabs(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = catalog(capsys, "--installed")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and {len(row) for row in rows} == {6}
    assert ["GenieX", "qwen3-4b", "genie"] in [row[:3] for row in rows]


def test_installed_models_are_shown_as_a_configuration(home: Path, tmp_path: Path) -> None:
    found = find_installed(program_folders(home, {}, "darwin"))
    shown = list(installed_lines(found, 50))
    assert max(len(line) for line in shown if line.startswith("#   ")) <= 50
    tables = tomllib.loads("\n".join(shown))["models"]
    assert list(tables) == [model.name for model in found if model.table]


def test_no_installed_model_is_one_line() -> None:
    assert list(installed_lines([], 50)) == ["No model of another program was found."]


ENTRIES = [
    Entry(name="a-3b", title="A", id="a", chip="x-elite", source="AI Hub", url="https://a", licence="apache-2.0"),
    Entry(name="a-very-long-name-of-a-model-that-goes-on-8b", title="B", id="b", chip="x-elite", source="AI Hub"),
    Entry(name="c-vl", title="C", id="c", chip="x-elite", source="AI Hub", kind="vision", layout="vision"),
]


@pytest.mark.parametrize("terminal", [50, 80, 200], indirect=True)
def test_groups_fit_into_the_terminal(terminal: Terminal) -> None:
    with redirect_stdout(terminal):
        write_groups(ENTRIES, chip_named("x-elite"), "x-elite")
    found = terminal.lines()
    assert max(map(cells, found)) <= terminal.width
    text = " ".join(" ".join(found).split())
    assert "Models for Snapdragon X Elite. `npu-gateway pull NAME --chip x-elite` gets one." in text
    assert text.index("a-3b") < text.index("To export yourself") < text.index(ENTRIES[1].name)
    assert text.index(ENTRIES[1].name) < text.index("Not served") < text.index("c-vl")
    assert "apache-2.0" in text and "not stated" in text and text.count("AI Hub") == 3


def test_command_repeats_the_chip_of_the_option() -> None:
    assert list(details(ENTRIES[0], "x2-elite"))[-1] == "  npu-gateway pull a-3b --chip x2-elite"
    assert list(details(ENTRIES[0]))[-1] == "  npu-gateway pull a-3b"


def test_text_of_a_publisher_cannot_break_a_line(terminal: Terminal) -> None:
    with redirect_stdout(terminal):
        write_groups([Entry(name="a", title="A", id="a", chip="x", source="AI Hub", licence="x\ty\nz\x1b[31m")], None)
    assert "\x1b" not in terminal.getvalue() and r"x\ty\nz\x1b" in terminal.getvalue()
