"""`npu-gateway models`: each engine and each state of a bundle, for a person and as JSON."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway import cli
from gateway.bundles.origin import Origin, write_origin
from gateway.commands.models import table
from gateway.commands.models.model_state import examine
from gateway.commands.running.run_file import RunFile, announced
from gateway.commands.tables import cells
from gateway.config.file import load_config
from gateway.config.tables import LocalModel
from gateway.lanes.memory.needs import Needs
from tests.support.npu.genie_bundle import write_genie_bundle
from tests.support.processes import free_port
from tests.support.server import serving
from tests.support.terminal import Terminal

MODELS = """
[models.tiny]
path = '{tiny}'
aliases = {{ gpt-4o-mini = {{ max_tokens = "context" }} }}
fallback = "far"
[models.later]
source = "pypi:some-model==1.0"
[models.broken]
path = '{broken}'
[models.far]
engine = "upstream"
url = "http://127.0.0.1:1/v1"
[models.script]
engine = "scripted"
simulate = "x-elite"
[models.genie]
engine = "genie"
path = "genie/config.json"
"""


@pytest.fixture
def config(tmp_path: Path, tiny: Path) -> Path:
    broken = tmp_path / "broken"
    broken.mkdir()
    file = tmp_path / "config.toml"
    file.write_text(MODELS.format(tiny=tiny, broken=broken), encoding="utf-8")
    return file


def test_json_has_state_of_each_model(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--json", "--config", str(config)]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "tiny": "ready",
        "later": "missing",
        "broken": "broken",
        "far": "remote",
        "script": "scripted",
        "genie": "missing",
    }
    assert rows["tiny"]["aliases"] == ["gpt-4o-mini"] and rows["tiny"]["fallback"] == "far"
    assert rows["tiny"]["context_length"] == 512 and rows["tiny"]["bytes"] > 10_000
    assert rows["later"]["detail"] == "built from pypi:some-model==1.0 at the first start"
    assert "genai_config.json" in rows["broken"]["detail"]


@pytest.mark.parametrize(("configured", "expected"), [(0, 4096), (512, 512), (200_000, 131_072)])
def test_context_of_olive_bundle_is_what_it_serves(
    olive_uncompiled: Path, tmp_path: Path, configured: int, expected: int
) -> None:
    """Its own context is that of the original model, and its graphs leave the number of rows open."""
    folder = Path(shutil.copytree(olive_uncompiled, tmp_path / "olive"))
    content = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    content["model"]["context_length"] = 131_072
    (folder / "genai_config.json").write_text(json.dumps(content), encoding="utf-8")
    state = examine(LocalModel(path=str(folder), context_length=configured))
    assert (state.state, state.context_length) == ("ready", expected)


def test_context_that_is_limited_for_the_memory_is_a_detail(long_tiny: Path) -> None:
    table = LocalModel(path=str(long_tiny))
    assert examine(table).context_length == 8192 and not examine(table).context_note
    found = examine(table, 1_000_000)
    assert found.context_length == 4096 and found.detail.startswith("context 4096 of 8192: ")


@pytest.mark.parametrize("terminal", [50, 80, 120], indirect=True)
def test_table_fits_into_the_terminal(config: Path, terminal: Terminal) -> None:
    with redirect_stdout(terminal):
        assert cli.main(["models", "--config", str(config)]) == 0
    found = terminal.lines()
    assert max(map(cells, found)) <= terminal.width
    text = " ".join(" ".join(found).split())
    for name in load_config(config, {}).models:
        assert f"{name} " in text
    for part in ("512", "gpt-4o-mini", "http://127.0.0.1:1/v1", "built from", "x-elite"):
        assert part in text, part


@pytest.mark.parametrize("terminal", [200], indirect=True)
def test_memory_is_about_only_for_the_model_that_was_not_measured(
    tmp_path: Path, tiny: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if both models have the same size."""
    file, needs = tmp_path / "config.toml", Needs()
    file.write_text(f"[models.a]\npath = '{tiny}'\n[models.b]\npath = '{tiny}'\nmax_sequences = 2\n", encoding="utf-8")
    first, second = map(needs.of, load_config(file, {}).models.values())
    needs.note(replace(first, bytes=second.bytes, load_s=1.0, is_measured=True))
    monkeypatch.setattr(table, "_needs", lambda: needs)
    with redirect_stdout(terminal):
        assert cli.main(["models", "--config", str(file)]) == 0
    assert [("about" in line) for line in terminal.lines() if line.startswith(("a ", "b "))] == [False, True]


def test_pipe_has_eleven_fields_of_each_model(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--config", str(config)]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {len(row) for row in rows} == {11}
    assert [row[0] for row in rows] == list(load_config(config, {}).models)
    silent = "http://127.0.0.1:1/v1 does not answer. Start that server, or correct `url`"
    assert rows[3] == ["far", "remote", "upstream", "", "", "", "", "", "http://127.0.0.1:1/v1", silent, ""]


def test_state_in_the_running_gateway_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.commands.doctor.gateway_state._ANSWER_S", 60.0)
    file = tmp_path / "config.toml"
    text = '[models.script]\nengine = "scripted"\n[models.bad]\nengine = "scripted"\nscript = { load_error = "no" }\n'
    file.write_text(f"[server]\nport = {free_port()}\n{text}", encoding="utf-8")
    loaded = load_config(file, {})
    with serving(loaded) as server:
        run = RunFile(url=server.url, host="127.0.0.1", port=server.port)
        with announced(run):
            assert cli.main(["models", "--json", "--config", str(file)]) == 0
    rows = {row["name"]: row["running"] for row in json.loads(capsys.readouterr().out)}
    assert rows == {"script": "ready on simulated", "bad": "failed"}


def test_genie_bundle_is_ready_or_broken(config: Path) -> None:
    folder = config.parent / "models" / "genie"
    binary = config.parent / "part_1_of_1.bin"
    binary.write_bytes(b"\x01" * 10_000)
    path = write_genie_bundle(folder, [binary])
    found = examine(load_config(config, {}).models["genie"])
    assert (found.state, found.context_length, found.bytes) == ("ready", 112, 10_000)
    path.write_text("{}", encoding="utf-8")
    found = examine(load_config(config, {}).models["genie"])
    assert found.state == "broken" and "config.json is not a Genie configuration" in found.detail


def test_prepare_reports_model_it_cannot_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[models.a]\nsource = "nowhere.gguf"\n[models.b]\nengine = "scripted"\n', encoding="utf-8")
    assert cli.main(["models", "--prepare", "--json", "--config", str(file)]) == 0
    output = capsys.readouterr()
    assert "npu-gateway: a: " in output.err and "nowhere.gguf" in output.err
    assert json.loads(output.out)[0]["state"] == "missing"


def test_prepare_builds_missing_bundle_once(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[models.a]\nsource = '{tiny}'\n", encoding="utf-8")
    for _ in range(2):
        assert cli.main(["models", "--prepare", "--json", "--config", str(file)]) == 0
        assert json.loads(capsys.readouterr().out)[0]["state"] == "ready"
    assert (tmp_path / "models" / "a" / "genai_config.json").is_file()


def test_published_speed_of_pulled_model_is_shown(
    config: Path, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = Path(shutil.copytree(tiny, tmp_path / "pulled"))
    write_origin(
        bundle, Origin(source="tiny", url="https://host/tiny.zip", chip="x-elite", published_tokens_per_s=21.2)
    )
    config.write_text(f"[models.tiny]\npath = '{bundle}'\n", encoding="utf-8")
    for command in ("models", "doctor"):
        cli.main([command, "--json", "--config", str(config)])
        assert "21.2 tokens/s on x-elite" in capsys.readouterr().out
