"""The gateway's log on stderr and in a file: one line for each request, and one for each change of a model's state.

The log has text of prompts only if `server.log_prompts` is set. It never has API keys. One record is one line, whatever
text a client, an upstream or a bundle put into it; the lines of a traceback follow, indented.
"""

from __future__ import annotations

import atexit
import io
import logging
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TextIO

import msgspec

from gateway.embedding import Inputs
from gateway.errors import cut
from gateway.generation import Chat, Prompt, Text
from gateway.monitoring.log_file import LogFile
from gateway.monitoring.output import EXIT_S, escape
from gateway.monitoring.request_line import RequestLine

_LONGEST_PROMPT = 2000
_LONGEST_LINE = 4000
_LONGEST_TRACEBACK = 50_000


def setup(
    level: str = "INFO",
    stream: TextIO | None = None,
    *,
    format: Literal["text", "json"] = "text",
    file: LogFile | None = None,
) -> None:
    """Write all logs of this process to `stream` as UTF-8, also on a console with another code page, and to `file`.

    Args:
        level: of the gateway's own loggers. Libraries log warnings and errors.
        stream: None: stderr. A process without a console has none.
        format: of the file, and of a stream that is not a terminal.
    """
    stream = stream or sys.stderr
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    handlers: list[logging.Handler] = []
    if stream is not None:
        handlers.append(_StreamHandler(stream))
        handlers[0].setFormatter(_TextFormatter() if format == "text" or stream.isatty() else _JsonFormatter())
    if file is not None:
        handlers.append(_FileHandler(file))
        handlers[-1].setFormatter(file_formatter(format))
    root = logging.getLogger()
    root.handlers[:] = [*(other for other in root.handlers if not isinstance(other, _OURS)), *handlers]
    root.setLevel(logging.WARNING)
    set_level(level)
    logging.captureWarnings(True)


def set_level(level: str) -> None:
    """Write the lines of the gateway's own loggers from this level on."""
    logging.getLogger("gateway").setLevel(level.upper())


def open_log_file(path: Path, max_mb: float, files: int, format: Literal["text", "json"] = "text") -> LogFile:
    """The log file for `setup`; its `path` has a number if another gateway writes to this one. Never raises."""
    formatter = file_formatter(format)

    def notice(lost: int) -> bytes:
        text = f"{lost} {'line' if lost == 1 else 'lines'} of this log could not be written"
        return line_of(logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", "msg": text}))

    def line_of(record: logging.LogRecord) -> bytes:
        return (formatter.format(record) + "\n").encode("utf-8", "backslashreplace")

    opened = LogFile(path, int(max_mb * 1_000_000), files, notice)
    atexit.register(opened.close, EXIT_S)
    return opened


def file_formatter(format: Literal["text", "json"]) -> logging.Formatter:
    return _JsonFormatter() if format == "json" else _TextFormatter(has_date=True)


class _StreamHandler(logging.StreamHandler[TextIO]):
    """The handler of stderr that `setup` adds."""


class _FileHandler(logging.Handler):
    """The handler of the log file that `setup` adds."""

    def __init__(self, file: LogFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._file.write((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        except Exception:
            self.handleError(record)


_OURS = (_StreamHandler, _FileHandler)


class _TextFormatter(logging.Formatter):
    """`12:00:00 INFO    message`. No text in a record can start a line that looks like this one.

    Args:
        has_date: write `2026-11-30T12:00:00+01:00` in place of the time.
    """

    def __init__(self, has_date: bool = False) -> None:
        super().__init__()
        self._has_date = has_date

    def format(self, record: logging.LogRecord) -> str:
        time = _iso_time(record, "seconds") if self._has_date else self.formatTime(record, "%H:%M:%S")
        line = f"{time} {record.levelname:7} {_message(record)}"
        return "\n".join([line, *(f"  {each}" for each in _traceback(self, record))])


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, Any] = {
            "time": _iso_time(record, "milliseconds"),
            "level": record.levelname,
            "logger": escape(record.name),
            "message": _message(record),
        }
        if isinstance(record.args, tuple) and record.args and isinstance(record.args[0], RequestLine):
            content["request"] = record.args[0].fields()
        if details := _traceback(self, record):
            content["traceback"] = details
        return msgspec.json.encode(content).decode()


def _iso_time(record: logging.LogRecord, timespec: str) -> str:
    return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec=timespec)


def _message(record: logging.LogRecord) -> str:
    return escape(cut(record.getMessage(), _LONGEST_LINE))


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    text = formatter.formatException(record.exc_info) if record.exc_info else ""
    return [escape(line) for line in cut(text, _LONGEST_TRACEBACK).splitlines()]


def prompt_texts(prompt: Prompt | Inputs) -> list[str]:
    """The texts that the client wrote."""
    match prompt:
        case Chat(messages=messages):
            return [message.content for message in messages if message.content]
        case Text(text=text, suffix=suffix):
            return [text, suffix or ""]
        case Inputs():
            return list(_texts_of(prompt))
    return []


def prompt_text(prompt: Prompt | Inputs) -> str:
    """The prompt for `log_prompts`; only the end of a long one."""
    match prompt:
        case Chat(messages=messages):
            text = "\n".join(f"{m.role}: {m.content or ''}" for m in messages)
        case Text(text=text):
            pass
        case Inputs():
            text = "\n".join(_texts_of(prompt))
        case _:
            text = " ".join(map(str, prompt.ids))
    return text if len(text) <= _LONGEST_PROMPT else "..." + text[-_LONGEST_PROMPT:]


def _texts_of(inputs: Inputs) -> Iterator[str]:
    """Each text that the client sent once: a ranking has its query in each pair."""
    yield from (text for text in inputs.texts if isinstance(text, str))
    yield from dict.fromkeys(query for query, _ in inputs.pairs)
    yield from (document for _, document in inputs.pairs)
