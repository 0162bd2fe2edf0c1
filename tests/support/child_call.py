"""What may take its process down runs in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PATIENCE_S = 60.0


def call_in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function`, importable by name, returns in a new process; fails when it raises there or dies."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs, function, arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(PATIENCE_S), "no answer"
        outcome = ours.recv()
    except EOFError:
        process.join(PATIENCE_S)
        raise AssertionError(f"the process died: exit code {process.exitcode}") from None
    finally:
        ours.close()
        process.join(PATIENCE_S)
        process.kill()
    if isinstance(outcome, BaseException):
        raise outcome
    assert process.exitcode == 0, f"it answered, and then died: exit code {process.exitcode}"
    return outcome


def _run(connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        outcome = function(*arguments)
    except Exception as error:
        outcome = error
    connection.send(outcome)
