"""The sandbox with a real child process."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from gateway.sandbox.child import BACKGROUND
from gateway.sandbox.process import Sandbox, SandboxUnavailable
from gateway.sandbox.running import Limits, SandboxLate, SandboxLimit
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE_S, environment

TASK = "tests.sandbox.task:open_task"
LIMITS = Limits(cpu_s=1, wall_s=PATIENCE_S, resident_bytes=300 << 20, address_bytes=1 << 30, start_cpu_s=60)
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals and resource limits")


@pytest.fixture
def make() -> Iterator[Callable[..., Sandbox]]:
    made: list[Sandbox] = []

    def make(setup: object = "x", limits: Limits = LIMITS, is_background: bool = False) -> Sandbox:
        made.append(Sandbox(TASK, lambda: setup, limits, is_background=is_background))
        return made[-1]

    yield make
    for sandbox in made:
        sandbox.close()


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid: int | None) -> bool:
    return pid is not None and psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_start_returns_the_reply_of_the_setup(make: Callable[..., Sandbox]) -> None:
    sandbox = make("5")
    assert [sandbox.start(), sandbox.start()] == [b"ready 5"] * 2


def test_requests_are_answered_by_one_process_in_order(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    large = os.urandom(3 << 20)
    assert [sandbox.request(message) for message in (b"a", b"", large)] == [b"a", b"", large]
    first = sandbox.pid
    assert (sandbox.request(b"b"), sandbox.pid) == (b"b", first)


def test_background_process_has_a_lower_priority(make: Callable[..., Sandbox]) -> None:
    usual, background = make(), make(is_background=True)
    usual.start(), background.start()
    assert psutil.Process(usual.pid).nice() == psutil.Process().nice()
    expected = (
        psutil.BELOW_NORMAL_PRIORITY_CLASS if sys.platform == "win32" else max(psutil.Process().nice(), BACKGROUND)
    )
    assert psutil.Process(background.pid).nice() == expected


def test_threads_take_turns(make: Callable[..., Sandbox]) -> None:
    sandbox, replies = make(), {}

    def ask(number: int) -> None:
        replies[number] = sandbox.request(str(number).encode())

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == {number: str(number).encode() for number in range(8)}


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"spin", r"^took more than 1 seconds of processor time$"),
        (b"compare", r"^took more than 1 seconds of processor time$"),
        (b"allocate", r"^ended the process, or took more than 1024 MiB$"),
        (b"exit", r"^ended the process"),
        (b"fail", r"^ended the process"),
        pytest.param(b"huge", r"^ended the process", marks=posix_only),
    ],
)
def test_request_over_a_limit_raises_and_the_next_is_answered(
    message: bytes, reason: str, make: Callable[..., Sandbox]
) -> None:
    sandbox = make()
    sandbox.start()
    first = sandbox.pid
    with pytest.raises(SandboxLimit, match=reason):
        sandbox.request(message)
    assert not is_running(first)
    assert sandbox.request(b"next") == b"next"


def test_request_over_the_limit_of_memory_raises_and_the_next_is_answered(make: Callable[..., Sandbox]) -> None:
    sandbox = make(limits=LIMITS._replace(cpu_s=60))  # a busy machine can need more than a second for these pages
    sandbox.start()
    with pytest.raises(SandboxLimit, match=r"more than (300|1024) MiB$"):
        sandbox.request(b"touch")
    assert sandbox.request(b"next") == b"next"


def test_request_that_waits_ends_at_the_wall_time(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    sandbox.start()
    with pytest.raises(SandboxLate, match=r"^took more than 0.1 seconds$"):
        sandbox.request(b"sleep", LIMITS._replace(wall_s=0.1))


def test_new_process_starts_without_a_request(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    with pytest.raises(SandboxLimit):
        sandbox.request(b"exit")
    eventually(lambda: is_running(sandbox.pid))


def test_processor_time_is_counted_for_each_request(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    for _ in range(8):  # 1.6 s together
        assert sandbox.request(b"cpu") == b"cpu"


@pytest.mark.parametrize("setup", ["endless", "exit"])
def test_failed_setup_is_reported_and_leaves_no_process(setup: str, make: Callable[..., Sandbox]) -> None:
    sandbox = make(setup, LIMITS._replace(start_cpu_s=1))
    for _ in range(2):
        with pytest.raises(SandboxUnavailable, match="its start failed: it "):
            sandbox.start()
    eventually(lambda: not is_running(sandbox.pid))


def test_task_without_its_packages_is_reported_with_the_cause() -> None:
    sandbox = Sandbox("tests.sandbox.absent:open_task", dict, LIMITS)
    try:
        with pytest.raises(SandboxUnavailable, match="its start failed: it reports: No module named"):
            sandbox.start()
    finally:
        sandbox.close()


def test_missing_interpreter_is_reported(make: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = make()
    monkeypatch.setattr(sys, "executable", "missing-python")
    with pytest.raises(SandboxUnavailable, match="it cannot be started: "):
        sandbox.request(b"a")
    monkeypatch.undo()
    assert sandbox.request(b"a") == b"a"


def test_killed_process_is_replaced(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    sandbox.start()
    assert sandbox.pid is not None
    first = psutil.Process(sandbox.pid)
    first.kill()
    eventually(lambda: not is_running(first.pid))
    assert sandbox.request(b"a") == b"a"


def test_request_is_sent_again_if_its_process_was_killed_before_it_began(make: Callable[..., Sandbox]) -> None:
    """The process is killed between the write of the message and its read, so no look at the process can show it."""
    sandbox = make()
    sandbox.start()
    child, process = sandbox._child, psutil.Process(sandbox.pid)
    assert child is not None
    process.suspend()
    eventually(lambda: process.status() == psutil.STATUS_STOPPED)
    send = child.send
    child.send = lambda message: (send(message), process.kill())  # type: ignore[method-assign, assignment, return-value]
    assert sandbox.request(b"a") == b"a"
    assert sandbox._child is not child


def test_request_that_ends_its_process_is_sent_once() -> None:
    processes = itertools.count()
    sandbox = Sandbox(TASK, lambda: next(processes), LIMITS)
    try:
        with pytest.raises(SandboxLimit, match="ended the process"):
            sandbox.request(b"exit")
        assert sandbox.start() == b"ready 1"  # the second process
    finally:
        sandbox.close()


def test_close_ends_a_running_request(make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    sandbox.start()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            sandbox.request(b"sleep")
        except (SandboxLimit, SandboxUnavailable) as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    eventually(sandbox._lock.locked)
    sandbox.close()
    thread.join(PATIENCE_S)
    assert [type(error) for error in errors] == [SandboxUnavailable]
    assert not is_running(sandbox.pid)
    for use in (sandbox.start, lambda: sandbox.request(b"a")):
        with pytest.raises(SandboxUnavailable, match="it is closed"):
            use()


def test_close_ends_a_process_that_is_being_started(
    make: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox, started = make(), list[subprocess.Popen[bytes]]()
    closing = threading.Thread(target=sandbox.close)
    spawn = subprocess.Popen

    def close_and_spawn(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        closing.start()
        eventually(lambda: sandbox._is_closed)
        started.append(spawn(*args, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", close_and_spawn)
    with pytest.raises(SandboxUnavailable, match=r"^it is closed$"):
        sandbox.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive() and not is_running(started[0].pid)


def test_sandbox_closed_while_its_setup_is_read_starts_nothing() -> None:
    sandbox = Sandbox(TASK, lambda: sandbox.close(), LIMITS)
    with pytest.raises(SandboxUnavailable, match=r"^it is closed$"):
        sandbox.start()
    assert sandbox.pid is None


def test_setup_that_cannot_be_read_is_reported() -> None:
    setups = [OSError(13, "Permission denied", "/private/tokenizer.json"), ValueError("malformed"), "x"]

    def setup() -> object:
        if isinstance(found := setups.pop(0), Exception):
            raise found
        return found

    sandbox = Sandbox(TASK, setup, LIMITS)
    try:
        for words in ("Permission denied", "malformed"):
            with pytest.raises(SandboxUnavailable, match=f"^its setup cannot be read: {words}$"):
                sandbox.request(b"a")
        assert sandbox.request(b"a") == b"a"
    finally:
        sandbox.close()


def test_child_imports_little(make: Callable[..., Sandbox]) -> None:
    modules = make().request(b"modules").split()
    assert not {b"msgspec", b"psutil", b"asyncio", b"subprocess", b"gateway.sandbox"} & set(modules)


PARENT = """
import sys, time
from gateway.sandbox.child import BACKGROUND
from gateway.sandbox.process import Sandbox
from gateway.sandbox.running import Limits
sandbox = Sandbox("tests.sandbox.task:open_task", lambda: "x", Limits(2, 60, 300 << 20, 1 << 30))
sandbox.start()
print(sandbox.pid, flush=True)
if sys.argv[1] != "idle":
    sandbox.request(sys.argv[1].encode())
time.sleep(3600)
"""


@pytest.mark.parametrize("state", ["idle", "compare"])
def test_child_ends_when_its_parent_is_killed(state: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, state], stdout=subprocess.PIPE, env=environment(), cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        if state != "idle":
            before = sum(child.cpu_times()[:2])
            eventually(lambda: sum(child.cpu_times()[:2]) > before + 0.1)
        parent.kill()
    eventually(lambda: not is_running(child.pid))


@posix_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_child_ignores_signals_of_the_process_group(number: signal.Signals, make: Callable[..., Sandbox]) -> None:
    sandbox = make()
    sandbox.start()
    first = sandbox.pid
    assert first is not None
    os.kill(first, number)
    assert (sandbox.request(b"a"), sandbox.pid) == (b"a", first)
