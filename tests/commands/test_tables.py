"""The tables of the commands in terminals of several widths, and in a pipe."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest

from gateway.commands.tables import Column, cells, write_table
from tests.support.terminal import Terminal

COLUMNS: Sequence[Column | str] = [
    "name",
    "state",
    Column("size", right=True, shown=lambda size: f"{size / 1e6:.0f} MB"),
    "unused",
    "detail",
]
LONG = "There is no bundle /home/user/" + "models/" * 9 + "qwen, and no `source` says what to build it from."
ROWS: Sequence[Sequence[object]] = [
    ["smollm2-135m", "ready", 98_000_000, None, "also as gpt-4o-mini"],
    ["模型一二三", "broken", None, "", LONG],
    ["x", "missing", 1_200_000_000, "", "没有这样的模型包" * 9],
]


@pytest.mark.parametrize("terminal", [20, 50, 80, 120], indirect=True)
def test_terminal_has_all_text_within_its_width(terminal: Terminal) -> None:
    write_table(ROWS, COLUMNS, terminal)
    assert max(map(cells, terminal.lines())) <= terminal.width
    shown = "".join(terminal.getvalue().split())
    for text in (*(text for row in ROWS for text in (row[0], row[1], row[4])), "98 MB", "1200 MB"):
        assert "".join(str(text).split()) in shown, text


@pytest.mark.parametrize("terminal", [80], indirect=True)
def test_wide_terminal_aligns_columns_and_folds_the_last(terminal: Terminal) -> None:
    write_table(ROWS, COLUMNS, terminal)
    title, *lines = terminal.lines()
    assert title == "name          state       size  detail"
    assert lines[0] == "smollm2-135m  ready      98 MB  also as gpt-4o-mini"
    assert lines[1].startswith("模型一二三    broken            There is no bundle")
    assert lines[2].startswith(" " * 32 + "/home/user/models/")


@pytest.mark.parametrize("terminal", [50], indirect=True)
def test_narrow_terminal_has_name_and_state_then_the_rest(terminal: Terminal) -> None:
    write_table(ROWS, COLUMNS, terminal)
    lines = terminal.lines()
    assert lines[:3] == ["smollm2-135m  ready", "  size: 98 MB, detail: also as gpt-4o-mini", "模型一二三  broken"]
    assert all(line.startswith("  ") for line in lines[3:] if not line.startswith("x "))


def test_pipe_has_complete_fields_between_tabs() -> None:
    pipe = io.StringIO()
    write_table(ROWS, COLUMNS, pipe)
    rows = [line.split("\t") for line in pipe.getvalue().splitlines()]
    assert rows == [["" if field is None else str(field) for field in row] for row in ROWS]


def test_control_characters_of_a_field_are_escaped(terminal: Terminal) -> None:
    pipe = io.StringIO()
    for stream in (pipe, terminal):
        write_table([["a\tb", "c\n\x1b[31md"]], ["x", "y"], stream)
        assert r"a\tb" in stream.getvalue() and r"c\n\x1b[31md" in stream.getvalue()


def test_title_is_dim_unless_no_color_is_set(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table([["a", "b"]], ["x", "y"], terminal)
    assert "\x1b" not in terminal.getvalue()
    monkeypatch.delenv("NO_COLOR")
    coloured = Terminal()
    write_table([["a", "b"]], ["x", "y"], coloured)
    assert "\x1b[2m" in coloured.getvalue()


def test_no_row_is_no_output(terminal: Terminal) -> None:
    write_table([], COLUMNS, terminal)
    assert terminal.getvalue() == ""
