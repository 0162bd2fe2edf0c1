"""The log line of a request, and the setup of the log."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.embedding import Inputs
from gateway.generation import Chat, Message, Text, TokenIds
from gateway.monitoring import logs
from gateway.monitoring.observers import AnswerRecord
from gateway.monitoring.request_line import RequestLine
from tests.support.processes import PATIENCE_S


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(), logging.getLogger("gateway")]
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    yield
    logging.captureWarnings(False)
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)


def test_setup_writes_utf8_to_console_with_other_code_page() -> None:
    raw = io.BytesIO()
    console = io.TextIOWrapper(raw, encoding="cp1252", newline="\n", write_through=True)
    logs.setup("warning", console)
    logging.getLogger("gateway.lanes.lane").warning("über 東京")
    logging.getLogger("gateway.lanes.lane").info("not shown")
    assert raw.getvalue().decode("utf-8").endswith(" WARNING über 東京\n")
    assert raw.getvalue().count(b"\n") == 1


def test_setup_twice_adds_one_handler() -> None:
    stream = io.StringIO()
    logs.setup("INFO", stream)
    logs.setup("INFO", stream)
    logging.getLogger("gateway").info("once")
    assert stream.getvalue().count("once") == 1


HOSTILE = "x\n12:00:00 ERROR   forged\r\x1b[2J\x9b\u2028\u202e"


@pytest.mark.parametrize("name", ["gateway.lanes.lane", "uvicorn.error", "asyncio", "py.warnings"])
def test_record_of_any_logger_is_one_line(name: str) -> None:
    stream = io.StringIO()
    logs.setup("INFO", stream)
    logging.getLogger(name).warning("%s", HOSTILE)
    assert stream.getvalue().endswith(r" WARNING x\n12:00:00 ERROR   forged\r\x1b[2J\x9b\u2028\u202e" + "\n")
    assert stream.getvalue()[:-1].isprintable()


def test_traceback_is_indented_and_escaped() -> None:
    stream = io.StringIO()
    logs.setup("INFO", stream)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("gateway").exception("failed")
    first, second, *others = stream.getvalue().split("\n")
    assert first.endswith(" ERROR   failed") and second == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") and line.isprintable() for line in others[:-1])
    assert "  ValueError: x" in others


def test_file_has_date_and_zone(tmp_path: Path) -> None:
    file = logs.open_log_file(tmp_path / "gateway.log", 1.0, 2)
    logs.setup("INFO", io.StringIO(), file=file)
    logging.getLogger("gateway").info("ready\n%s", HOSTILE)
    file.close(PATIENCE_S)
    text = file.path.read_text(encoding="utf-8")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d INFO    ready\\nx.*\n", text)


def test_json_log_is_one_object_a_line(tmp_path: Path) -> None:
    file = logs.open_log_file(tmp_path / "gateway.log", 1.0, 2, "json")
    stream = io.StringIO()
    logs.setup("INFO", stream, format="json", file=file)
    record = AnswerRecord(at=0.0, id="req-7", requested=HOSTILE, ending="stop", ttft_ms=500.0)
    logging.getLogger("gateway").info("%s", RequestLine(record))
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("gateway").exception("failed")
    file.close(PATIENCE_S)
    text = file.path.read_text(encoding="utf-8")
    assert text == stream.getvalue() and text.replace("\n", "").isprintable()
    first, second = map(json.loads, text.splitlines())
    assert first["request"]["id"] == "req-7" and first["request"]["ttft_ms"] == 500.0
    assert (first["level"], second["level"], second["logger"]) == ("INFO", "ERROR", "gateway")
    assert "ValueError: x" in second["traceback"]


def test_warning_is_a_record() -> None:
    stream = io.StringIO()
    logs.setup("INFO", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("careful\n", stacklevel=1)
    assert "UserWarning: careful" in stream.getvalue() and stream.getvalue().count("\n") == 1


def test_long_record_is_cut() -> None:
    stream = io.StringIO()
    logs.setup("INFO", stream)
    logging.getLogger("gateway").info("%s", "\n" * 1_000_000)
    try:
        raise ValueError("\n" * 1_000_000)
    except ValueError:
        logging.getLogger("gateway").exception("failed")
    assert len(stream.getvalue()) < 200_000


def test_prompt_text_of_each_prompt_type() -> None:
    chat = Chat(messages=(Message(role="system", content="be kind"), Message(role="assistant")))
    assert logs.prompt_text(chat) == "system: be kind\nassistant: "
    assert logs.prompt_text(Text("hello")) == "hello"
    assert logs.prompt_text(TokenIds((1, 2))) == "1 2"
    assert logs.prompt_text(Text("x" * 5000 + "end")).endswith("xend")
    assert len(logs.prompt_text(Text("x" * 5000))) < 2100
    assert logs.prompt_text(Inputs(texts=("one", (1, 2), "two"))) == "one\ntwo"


def test_query_of_a_ranking_is_not_repeated_for_each_document() -> None:
    """8 MB of it and 2048 documents would be 16 GB."""
    ranking = Inputs(pairs=(("query", "one"), ("query", "two"), ("query", "one")))
    assert logs.prompt_text(ranking) == "query\none\ntwo\none"
    assert logs.prompt_texts(ranking) == ["query", "one", "two", "one"]
