"""Ctrl-C that comes just before the wait for a key."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from tests.support.processes import PATIENCE_S, environment

#: SIGINT reaches another thread, so that it sets Python's flag and does not interrupt the wait of the main thread.
LOST = """
import ctypes, os, signal, threading
from gateway.commands.chat.interrupts import repeat_interrupts

repeat_interrupts()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
ready = threading.Event()

def interrupt():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    ready.wait()
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt).start()
try:
    ready.set()
    ctypes.CDLL(None).pause()
    ctypes.CDLL(None).pause()
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_interrupt_that_no_wait_has_seen_ends_the_wait() -> None:
    command = [sys.executable, "-c", LOST]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, encoding="utf-8", timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
