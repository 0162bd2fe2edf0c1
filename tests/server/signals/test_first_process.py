"""SIGTERM for the first process of a container, before its server runs."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from gateway.server.signals.first_process import end_at_sigterm


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process 1")
@pytest.mark.parametrize("pid", [1, 7])
def test_sigterm_ends_process_1_only(monkeypatch: pytest.MonkeyPatch, pid: int) -> None:
    monkeypatch.setattr(os, "getpid", lambda: pid)
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    before = signal.getsignal(signal.SIGTERM)
    try:
        end_at_sigterm()
        if pid == 1:
            signal.raise_signal(signal.SIGTERM)
            assert codes == [143]
        else:
            assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)
