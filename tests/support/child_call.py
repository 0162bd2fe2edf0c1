"""Calls a function in a new process, for code that can crash its process."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

TIMEOUT_S = 60.0


def call_in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `function`, which must be importable by name. Fails when it raises, or when its process dies."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(TIMEOUT_S), "no result"
        outcome = ours.recv()
    except EOFError:
        process.join(TIMEOUT_S)
        raise AssertionError(f"the process died: exit code {process.exitcode}") from None
    finally:
        ours.close()
        process.join(TIMEOUT_S)
        process.kill()
    if isinstance(outcome, BaseException):
        raise outcome
    assert process.exitcode == 0, f"the process died after its result: exit code {process.exitcode}"
    return outcome


def _run(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        outcome = function(*arguments)
    except Exception as error:
        outcome = error
    connection.send(outcome)
