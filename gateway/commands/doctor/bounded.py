"""Runs a check within a time limit. A fault of it, or that it does not end, is a finding, not the end of the report."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from gateway.commands.doctor.finding import Finding
from gateway.errors import GatewayError


def bounded(what: str, limit_s: float, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of `check`, those before a fault too.

    The check runs in a daemon thread, which ends with this process, as child processes of `child.py` do.

    Args:
        what: names the check.
        limit_s: seconds for all findings together.
    """
    found: queue.Queue[Finding | None] = queue.Queue()
    threading.Thread(target=_run, args=(what, check, found), name=what, daemon=True).start()
    end = time.monotonic() + limit_s
    while True:
        try:
            finding = found.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            detail = f"this check did not end within {limit_s:g} s"
            yield Finding("bad", what, detail, because=f"the check of {what} did not end within {limit_s:g} s")
            return
        if finding is None:
            return
        yield finding


def _run(what: str, check: Callable[[], Iterable[Finding]], found: queue.Queue[Finding | None]) -> None:
    try:
        for finding in check():
            found.put(finding)
    except GatewayError as error:
        found.put(Finding("bad", what, error.message))
    except Exception as error:  # a fault of one check, of this program too, must not hide the others
        found.put(Finding("note", what, f"this check failed: {type(error).__name__}: {error}"))
    finally:
        found.put(None)
