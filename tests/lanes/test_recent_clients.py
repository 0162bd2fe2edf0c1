"""The clients for which a slot stays free."""

from __future__ import annotations

from gateway.lanes.recent_clients import RecentClients
from tests.support.manual_clock import ManualClock


def test_client_without_a_running_request_is_absent_for_a_minute() -> None:
    clock = ManualClock()
    recent = RecentClients(clock)
    recent.note("a")
    assert recent.has_absent({}) and not recent.has_absent({"a": 1})
    recent.note("b")
    assert recent.has_absent({"a": 1})
    clock.now += 59
    recent.note("a")
    assert recent.has_absent({"a": 1})
    clock.now += 1
    assert not recent.has_absent({"a": 1})


def test_thousand_clients_leave_little_state() -> None:
    recent = RecentClients(ManualClock())
    for number in range(1000):
        recent.note(f"{number}")
    assert len(recent._seen) == 8 and recent.has_absent({})
