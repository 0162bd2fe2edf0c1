from __future__ import annotations

import threading
from collections.abc import Iterator

from gateway.commands.doctor.bounded import bounded
from gateway.commands.doctor.finding import Finding
from gateway.errors import BundleError

GOOD = Finding("ok", "a", "fine")


def test_findings_are_passed_on() -> None:
    assert list(bounded("a", 60, lambda: [GOOD, GOOD])) == [GOOD, GOOD]


def test_check_that_does_not_end_is_one_line() -> None:
    released = threading.Event()

    def check() -> Iterator[Finding]:
        released.wait(60)
        yield GOOD

    [found] = bounded("disk", 0, check)
    released.set()
    assert (found.level, found.what, found.detail) == ("bad", "disk", "this check did not end within 0 s")


def test_fault_of_a_check_is_one_line() -> None:
    def check() -> Iterator[Finding]:
        yield GOOD
        raise ZeroDivisionError("by zero")

    first, last = bounded("disk", 60, check)
    assert first == GOOD
    assert (last.level, last.detail) == ("note", "this check failed: ZeroDivisionError: by zero")


def test_error_for_a_user_is_bad() -> None:
    def check() -> Iterator[Finding]:
        raise BundleError("broken")
        yield

    assert list(bounded("disk", 60, check)) == [Finding("bad", "disk", "broken")]
