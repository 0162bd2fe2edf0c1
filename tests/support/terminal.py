"""A terminal of a given width as stdout."""

from __future__ import annotations

import io

import pytest


class Terminal(io.StringIO):
    """Collects what is written."""

    width: int

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Terminal:
    """120 columns, or the parameter, without colours. `redirect_stdout(terminal)` makes it stdout."""
    found = Terminal()
    found.width = getattr(request, "param", 120)
    monkeypatch.setenv("COLUMNS", str(found.width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    return found
