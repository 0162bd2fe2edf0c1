"""What native code prints is caught and passed on."""

from __future__ import annotations

import os
import sys

from gateway.worker.genie.captured_output import captured_output
from tests.support.child_call import call_in_child


def catches() -> str:
    with captured_output() as output:
        os.write(1, b"to stdout \xff, ")
        os.write(2, b"to stderr, ")
        print("from Python")
    return output.text


def catches_without_streams() -> str:
    os.close(1)
    sys.stdout = None  # as in a process without a console
    with captured_output() as output:
        os.write(2, b"only this")
    return output.text


def test_both_streams_are_caught_in_order() -> None:
    assert call_in_child(catches) == "to stdout \ufffd, to stderr, from Python\n"


def test_a_process_without_a_console_loses_only_what_it_has_not() -> None:
    assert call_in_child(catches_without_streams) == "only this"


def test_an_exception_passes_and_the_streams_come_back(capfd: object) -> None:
    def fails() -> None:
        with captured_output():
            raise ValueError("here")

    try:
        fails()
    except ValueError as error:
        assert str(error) == "here"
    assert os.fstat(1) and os.fstat(2)
