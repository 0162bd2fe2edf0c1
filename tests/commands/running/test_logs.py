"""`npu-gateway logs`: from the file of the gateway, from its memory, and of one that has ended."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from msgspec.structs import replace

from gateway.commands.running import logs
from gateway.commands.running.find import Found
from gateway.commands.running.run_file import RunFile, announced
from gateway.errors import UpstreamFailed
from tests.commands.running.conftest import Command
from tests.support.processes import free_port

T = TypeVar("T")


def test_lines_come_from_memory_if_there_is_no_file(found: RunFile, command: Command) -> None:
    for name in ("first", "second"):
        logging.getLogger("gateway").warning("%s\x1b[31m", name)
    code, output, _ = command("logs", "-n", "2")
    assert code == 0
    first, second = output.splitlines()
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:]{8}[+-][\d:]{5} WARNING first", first)
    assert "second" in second and "\x1b" not in output
    assert command("logs", "-n", "0") == (0, "", "")


def test_last_lines_of_the_file(found: RunFile, command: Command, tmp_path: Path) -> None:
    file = tmp_path / "own.log"
    file.write_text("one\ntwo\x1b[2J\nthree ü\n", encoding="utf-8")  # another program wrote there too
    with announced(replace(found, log_file=str(file))):
        assert command("logs", "-n", 2) == (0, "two\\x1b[2J\nthree ü\n", "")
        assert command("logs") == (0, "one\ntwo\\x1b[2J\nthree ü\n", "")
        file.unlink()
        code, _, errors = command("logs")
    assert code == 1 and errors.startswith(f"npu-gateway: {file} cannot be read: ")


def test_log_of_the_last_gateway_is_shown_after_its_end(data: Path, command: Command) -> None:
    code, _, errors = command("logs")
    assert code == 1 and "none has written a log file" in errors
    file = data / "npu-gateway" / "logs" / "gateway.log"
    file.parent.mkdir(parents=True)
    file.write_text("it failed\n", encoding="utf-8")
    code, output, errors = command("logs", "--follow")
    assert (code, output) == (0, "it failed\n") and str(file) in errors


def test_follow_reads_rotated_files_and_ends_with_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gateway.log"
    file.write_text("old\n", encoding="utf-8")
    steps = ["a long line\nhalf", "a long line\nhalf of one\n", "new\n", None]  # the text of the file at each look

    def is_alive(run: RunFile) -> bool:
        text = steps.pop(0)
        if text is None:
            return False
        file.write_text(text if text == "new\n" else f"old\n{text}", encoding="utf-8")
        return True

    monkeypatch.setattr(logs, "is_alive", is_alive)
    monkeypatch.setattr(logs, "_POLL_S", 0)
    run = RunFile(url="http://127.0.0.1:1", host="127.0.0.1", port=1)
    arguments = argparse.Namespace(lines=1, follow=True)
    assert list(logs._of_file(file, arguments, run)) == ["old", "a long line", "half of one", "new"]


def test_negative_number_and_unreachable_gateway_are_one_line(command: Command) -> None:
    assert command("logs", "-n", -1)[0] == 1
    code, _, errors = command("logs", "--url", f"http://127.0.0.1:{free_port()}")
    assert code == 1 and "no server answers" in errors and len(errors.splitlines()) == 1


def test_follow_of_memory_ends_with_the_gateway(
    found: RunFile, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {"time": 0.0, "level": "INFO", "text": "a line"}
    replies = [[{**line, "n": 1}, {**line, "n": 2}], [], [{**line, "n": 3}]]
    paths = []

    def call(gateway: Found, method: str, path: str, kind: type[T]) -> T:
        paths.append(path)
        if not replies:
            raise UpstreamFailed("no server answers")
        return msgspec.convert({"lines": replies.pop(0)}, kind)

    monkeypatch.setattr(logs, "call", call)
    monkeypatch.setattr(logs, "_POLL_S", 0)
    code, output, errors = command("logs", "-f", "-n", "1")
    assert (code, errors) == (0, "npu-gateway: the gateway has ended\n") and len(output.splitlines()) == 2
    assert paths == ["/gateway/log", *(f"/gateway/log?after={n}" for n in (2, 2, 3))]
