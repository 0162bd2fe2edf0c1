"""`run_in_child` with a real child process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gateway.child import run_in_child
from gateway.errors import BundleError
from tests.support.child_task import Task
from tests.support.processes import PATIENCE_S, environment

MODULE = "tests.support.child_task"


def test_reply_is_returned_as_json() -> None:
    assert msgspec.json.decode(run_in_child(MODULE, Task("reply"), "the task")) == {"count": 2}


def test_progress_is_reported_and_other_text_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, float]] = []
    run_in_child(MODULE, Task("reply"), "the task", progress=lambda stage, fraction: seen.append((stage, fraction)))
    assert seen == [("counting", 0.5), ("counting", 1.0)]
    assert capsys.readouterr().err.splitlines() == ["noise without a newlinea line of noise"]


def test_without_progress_other_text_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    run_in_child(MODULE, Task("reply"), "the task")
    assert capsys.readouterr().err == ""


def test_refusal_raises_with_the_message_of_the_child() -> None:
    with pytest.raises(BundleError, match=r"^The task has a reason\.$"):
        run_in_child(MODULE, Task("refuse"), "the task")


def test_crash_raises_with_the_exit_code() -> None:
    with pytest.raises(BundleError, match=r"^The process that worked on the task crashed \(exit code 9\)\.$"):
        run_in_child(MODULE, Task("crash"), "the task")


def test_missing_module_raises_as_a_crash() -> None:
    with pytest.raises(BundleError, match="worked on the task crashed"):
        run_in_child("tests.support.no_such_module", Task("reply"), "the task")


def test_interrupt_lets_the_child_clean_up(tmp_path: Path) -> None:
    def interrupt(stage: str, fraction: float) -> None:
        assert (tmp_path / "unfinished").is_dir()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_in_child(MODULE, Task("work", str(tmp_path)), "the task", progress=interrupt, clean_up_s=60)
    assert list(tmp_path.iterdir()) == []


def test_child_ends_with_its_parent_in_the_middle_of_a_task() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as parent:
        code = f"from gateway import child; child._CLEAN_UP_S = 0; child._end_with({parent.pid})"
        with subprocess.Popen([sys.executable, "-c", code], env=environment()) as child:
            parent.kill()
            parent.wait()
            assert child.wait(PATIENCE_S) == 130


def test_process_id_is_known_while_the_task_runs() -> None:
    seen: list[int] = []
    run_in_child(MODULE, Task("reply"), "the task", on_start=seen.append)
    assert len(seen) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="process groups of POSIX")
def test_interrupt_of_the_terminal_does_not_reach_a_child_that_is_apart() -> None:
    """The terminal sends it to its own process group."""
    assert sys.platform != "win32"
    groups: list[bool] = []

    def note(pid: int) -> None:
        groups.append(os.getpgid(pid) == os.getpgid(0))

    for is_apart in (False, True):
        run_in_child(MODULE, Task("reply"), "the task", on_start=note, is_apart=is_apart)
    assert groups == [True, False]
