"""A task for `run_in_child`: `python -m tests.support.child_task` does what its request names."""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path
from typing import Literal

from msgspec import Struct

from gateway.child import report_progress, serve_request
from gateway.errors import BundleError


class Task(Struct):
    """`folder`: where `work` makes a folder, and removes it when it ends."""

    what: Literal["reply", "refuse", "crash", "work"]
    folder: str = ""


def _do(task: Task) -> dict[str, int] | None:
    match task.what:
        case "reply":
            report_progress("counting", 0.5)
            print("noise without a newline", end="", file=sys.stderr, flush=True)
            report_progress("counting", 1.0)
            print("a line of noise", file=sys.stderr)
            return {"count": 2}
        case "refuse":
            raise BundleError("The task has a reason.")
        case "crash":
            os._exit(9)
        case "work":
            _work(Path(task.folder) / "unfinished")
    return None


def _work(folder: Path) -> None:
    """Report progress until the parent is gone or an interrupt comes."""
    folder.mkdir()
    try:
        for step in count():
            report_progress("working", step / (step + 1))
    finally:
        folder.rmdir()


if __name__ == "__main__":
    sys.exit(serve_request(Task, _do))
