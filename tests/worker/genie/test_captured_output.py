"""The output of native code is captured and passed on."""

from __future__ import annotations

import os
import sys

from gateway.worker.genie.captured_output import captured_output
from tests.support.child_call import call_in_child


def capture() -> str:
    with captured_output() as output:
        os.write(1, b"to stdout \xff, ")
        os.write(2, b"to stderr, ")
        print("from Python")
    return output.text


def capture_without_stdout() -> str:
    os.close(1)
    sys.stdout = None  # a process without a console
    with captured_output() as output:
        os.write(2, b"only this")
    return output.text


def test_both_streams_are_captured_in_order() -> None:
    assert call_in_child(capture) == "to stdout \ufffd, to stderr, from Python\n"


def test_missing_stdout_captures_stderr() -> None:
    assert call_in_child(capture_without_stdout) == "only this"


def test_exception_restores_streams(capfd: object) -> None:
    def fails() -> None:
        with captured_output():
            raise ValueError("here")

    try:
        fails()
    except ValueError as error:
        assert str(error) == "here"
    assert os.fstat(1) and os.fstat(2)
