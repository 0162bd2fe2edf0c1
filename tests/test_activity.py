"""Device calls: what is held against a device, and how the gateway sees what a worker does."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import pytest

from gateway.activity import NO_MEMORY, Activity, ActivityMonitor
from gateway.errors import DeviceFailed, EngineFailed, InvalidRequest
from tests.support.manual_clock import ManualClock


@pytest.mark.parametrize(
    ("error", "message", "is_logged"),
    [
        (EngineFailed("QNN error 14001."), "QNN error 14001.", False),
        (InvalidRequest("the driver's word for it"), "the driver's word for it", False),
        (MemoryError(), NO_MEMORY, False),
        (RuntimeError("secret"), "The device call failed: RuntimeError.", True),
        (DeviceFailed("as it is"), "as it is", False),
    ],
)
def test_exception_in_a_device_call_is_a_device_failure(
    error: Exception, message: str, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    activity = Activity()
    with pytest.raises(DeviceFailed) as raised, activity.device_call():
        raise error
    assert raised.value.message == message
    assert bool(caplog.records) == is_logged
    assert activity.state == "working"


def test_interrupt_passes_through_a_device_call() -> None:
    with pytest.raises(KeyboardInterrupt), Activity().device_call():
        raise KeyboardInterrupt


@pytest.mark.parametrize("best", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_are_a_device_failure(best: float) -> None:
    Activity().check(1.5)
    with pytest.raises(DeviceFailed, match="no usable logits"):
        Activity().check(best)


def test_device_time_is_the_sum_of_the_calls() -> None:
    clock = ManualClock()
    activity = Activity(clock=clock)
    for seconds in (1.0, 2.5):
        with activity.device_call() as call:
            clock.now += seconds
        assert call.seconds == seconds
        clock.now += 100.0  # work between the calls
    assert activity.device_s == 3.5


def test_monitor_measures_the_running_call_only() -> None:
    clock, activity = ManualClock(), Activity()
    monitor = ActivityMonitor(activity, clock)
    clock.now += 50.0
    assert monitor.look() == ("waiting", 50.0)
    activity.enter("in_call")
    assert monitor.call_s == 0.0
    clock.now += 5.0
    assert monitor.call_s == 5.0
    activity.enter("in_call")  # the next token of a long call
    assert monitor.call_s == 0.0
    activity.enter("working")
    clock.now += 5.0
    assert monitor.call_s == 0.0


def _count(connection: Connection, activity: Activity) -> None:
    with activity.device_call():
        connection.send("in the call")
        connection.recv()
    connection.send("after the call")
    connection.recv()


def test_state_is_seen_from_another_process() -> None:
    context = multiprocessing.get_context("spawn")
    activity = Activity(context)
    ours, theirs = context.Pipe()
    process = context.Process(target=_count, args=(theirs, activity), daemon=True)
    process.start()
    theirs.close()
    assert activity.state == "waiting"
    words = []
    for message, state in (("in the call", "in_call"), ("after the call", "working")):
        assert ours.poll(60) and ours.recv() == message
        assert activity.state == state
        words.append(activity.word)
        ours.send("go on")
    process.join(60)
    assert process.exitcode == 0 and words[0] != words[1]
    ours.close()
