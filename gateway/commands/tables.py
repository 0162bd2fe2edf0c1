"""Tables of the commands: aligned in a terminal, folded where it is narrow, tab-separated in a pipe."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from msgspec import Struct

from gateway.monitoring.output import escape

_GAP = 2  # spaces between two columns
_MIN_LAST = 24  # cells: a last column that has fewer is not folded in its column
_INDENT = "  "


class Column(Struct, frozen=True):
    """A column.

    Args:
        title: "" for a column that needs none.
        right: its cells end at its right edge, as numbers do.
        shown: the text of a field in a terminal. A pipe gets `str` of each field.
    """

    title: str = ""
    right: bool = False
    shown: Callable[[Any], str] = str


def write_table(
    rows: Sequence[Sequence[object]], columns: Sequence[Column | str], stream: IO[str] | None = None
) -> None:
    """Write a table.

    A pipe gets one line for each row: all fields with tabs between them, complete, without titles. A terminal gets
    columns without those that are empty. If they do not fit, the text of the last column is folded. If that is not
    enough, each row is a line with its first two fields, and below it the others as `title: field`.

    Args:
        rows: a field for each column. None is an empty field.
        columns: a text is a column with this title. A pipe needs none.
        stream: stdout by default.
    """
    stream = sys.stdout if stream is None else stream
    if stream is None:  # without a console, as in pythonw
        return
    if not stream.isatty():
        stream.writelines("\t".join(_text(field, str) for field in row) + "\n" for row in rows)
        return
    kept = [column if isinstance(column, Column) else Column(column) for column in columns]
    texts = [[_text(field, column.shown) for field, column in zip(row, kept, strict=True)] for row in rows]
    _write_to_terminal(terminal_lines(texts, kept, shutil.get_terminal_size().columns), stream)


def _text(field: object, shown: Callable[[Any], str]) -> str:
    return "" if field is None else escape(shown(field))


def terminal_lines(rows: Sequence[Sequence[str]], columns: Sequence[Column], width: int) -> Iterator[tuple[str, bool]]:
    """The lines of a table that fit into `width` cells, and for each whether it is the title."""
    used = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    rows, columns = [[row[index] for index in used] for row in rows], [columns[index] for index in used]
    if not rows or not columns:
        return
    widths = [max(cells(column.title), *(cells(row[index]) for row in rows)) for index, column in enumerate(columns)]
    before_last = sum(widths[:-1]) + _GAP * (len(widths) - 1)
    if before_last + min(widths[-1], _MIN_LAST) <= width:
        widths[-1] = min(widths[-1], width - before_last)
        yield from _aligned(rows, columns, widths)
    else:
        yield from ((line, False) for row in rows for line in _stacked(row, columns, max(width, 20)))


def _aligned(
    rows: Sequence[Sequence[str]], columns: Sequence[Column], widths: Sequence[int]
) -> Iterator[tuple[str, bool]]:
    if any(column.title for column in columns):
        yield _joined([column.title for column in columns], columns, widths), True
    indent = " " * (sum(widths[:-1]) + _GAP * (len(widths) - 1))
    for row in rows:
        first, *more = wrapped(row[-1], widths[-1]) or [""]
        yield _joined([*row[:-1], first], columns, widths), False
        yield from ((indent + line, False) for line in more)


def _joined(row: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = []
    for text, column, width in zip(row, columns, widths, strict=True):
        space = " " * (width - cells(text))
        padded.append(space + text if column.right else text + space)
    return (" " * _GAP).join(padded).rstrip()


def _stacked(row: Sequence[str], columns: Sequence[Column], width: int) -> Iterator[str]:
    """A row on several lines: the first two fields, then each other field with its title, indented."""
    yield from wrapped("  ".join(filter(None, row[:2])), width, later=_INDENT)
    named = [
        f"{column.title}: {text}" if column.title else text
        for text, column in zip(row[2:], columns[2:], strict=True)
        if text
    ]
    yield from wrapped(", ".join(named), width, _INDENT, _INDENT)


def wrapped(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    """`text` in lines of at most `width` cells. `first`, `later`: what the first and the other lines begin with."""
    from rich.console import Console
    from rich.text import Text

    found: Iterable[Text] = (
        Text(text).wrap(Console(width=width), width - max(len(first), len(later)), overflow="fold") if text else []
    )
    return [(later if index else first) + line.plain.rstrip() for index, line in enumerate(found)]


def cells(text: str) -> int:
    """The cells of a terminal that `text` takes: a Chinese character takes two."""
    from rich.cells import cell_len

    return cell_len(text)


def _write_to_terminal(lines: Iterator[tuple[str, bool]], stream: IO[str]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=stream, highlight=False)
    title = "" if console.no_color else "dim"
    for line, is_title in lines:
        console.print(Text(line, title if is_title else ""), soft_wrap=True)
