"""What `npu-gateway list` shows on a terminal and in a pipe."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path

import pytest

from gateway import cli
from gateway.commands.models import stored
from gateway.commands.tables import cells
from gateway.pull.stored import Stored
from tests.support.terminal import Terminal

MODELS = [
    Stored(name="a", state="ready", bytes=3_100_000_000, layout="genie", source="qwen3-4b", is_configured=True),
    Stored(name="a-very-long-name-of-a-model-that-goes-on-8b", state="elsewhere", bytes=1, layout="pipeline"),
    Stored(name="b", state="interrupted", bytes=5_000_000, source="https://host/a folder with a name/b.zip"),
]


@pytest.mark.parametrize("terminal", [50, 80, 200], indirect=True)
def test_table_fits_into_the_terminal(terminal: Terminal) -> None:
    with redirect_stdout(terminal):
        stored._write(MODELS)
    found = terminal.lines()
    assert max(map(cells, found)) <= terminal.width
    text = " ".join(" ".join(found).split())
    assert "a ready" in text and "genie" in text and "qwen3-4b" in text and "3.1 GB" in text
    assert "not configured" in text and "`npu-gateway rm b`" in text


def test_pipe_has_eight_fields_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    stored._write(
        [Stored(name="a", state="ready", bytes=1, layout="genie", source="x\ty\nz\x1b[31m", numbers="int4"), MODELS[2]]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [len(line.split("\t")) for line in lines] == [8, 8]
    assert lines[0].endswith("\tint4")
    assert lines[1].split("\t")[1:3] == ["interrupted", "5000000"] and "\x1b" not in lines[0]


def test_no_model_names_the_next_step(terminal: Terminal, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[models.a]\nengine = "scripted"\n', encoding="utf-8")
    with redirect_stdout(terminal):
        assert cli.main(["list", "--config", str(config)]) == 0
    [line] = terminal.lines()
    assert "npu-gateway catalog" in line
