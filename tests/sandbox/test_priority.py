"""The priority of one thread."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from gateway.sandbox.child import BACKGROUND
from gateway.sandbox.priority import lower_thread_priority


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the priority of a thread")
def test_only_the_calling_thread_gets_a_lower_priority() -> None:
    seen: list[int] = []

    def work() -> None:
        lower_thread_priority()
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert seen == [max(mine, BACKGROUND)]
    assert mine == before
