"""Kills a build for the NPU at chosen points: the next run continues with the pieces that are finished.

    python -m tests.support.kill_npu_build KIND FOLDER SEED COUNT

KIND "pieces" has pieces of small files, "real" compiles a tiny model for the emulated NPU in three pieces. The points
are those of tests/support/kill_points.py; the renames, which are the ends of the pieces, are always among them. COUNT
0: all points. Prints JSON.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from gateway.builder.build import build_bundle
from gateway.builder.npu.build import NpuTarget
from gateway.builder.npu.pieces import FILES, Pieces, link_files
from gateway.builder.sources.detect import open_source
from gateway.bundles.hashes import check_hashes
from gateway.bundles.replace import new_folder
from gateway.bundles.stamp import unfinished_folder, unfinished_pieces
from gateway.child import Progress
from tests.support.kill_points import run_forked
from tests.support.tiny import write_tiny_folder

_NAMES = ("tables", "part0", "part1")


def pieces(source: Path, out: Path, progress: Progress) -> None:
    """Three pieces, each of which needs the one before it, then the bundle."""
    found = Pieces(unfinished_folder(out), "the key")
    made: list[Path] = []
    for name in _NAMES:
        before = (made[-1] / FILES / f"{made[-1].name}.bin").read_bytes() if made else b""

        def fill(folder: Path, name: str = name, before: bytes = before) -> None:
            _note(out, name)
            (folder / FILES / f"{name}.bin").write_bytes(hashlib.sha256(before + name.encode()).digest())

        made.append(found.make(name, fill))
    with new_folder(out) as folder:
        for piece in made:
            link_files(piece, folder)
    shutil.rmtree(found.folder)


def real(source: Path, out: Path, progress: Progress) -> None:
    """As `gateway.builder.npu.background` does, without a process for each piece."""
    from gateway.qnn.provider import any_npu

    def noted(stage: str, fraction: float) -> None:
        if fraction == 0:
            _note(out, stage)
        progress(stage, fraction)

    target = NpuTarget(
        device=any_npu(),
        contexts=(32,),
        width=8,
        precision="int4",
        parts=2,
        batch=1,
        verify=1,
        unfinished=unfinished_folder(out),
    )
    done = count = 0
    while done == 0 or done < count:
        done, count = target.advance(open_source(source), noted)
    build_bundle(source, out, progress=progress, target=target)
    shutil.rmtree(unfinished_folder(out))


TASKS: dict[str, Callable[[Path, Path, Progress], None]] = {"pieces": pieces, "real": real}
#: What `_note` writes when a piece begins.
_BEGINS = {
    "pieces": _NAMES,
    "real": ("writing embeddings and head", "part 1 of 2: writing", "part 2 of 2: writing"),
}


def _note(out: Path, what: str) -> None:
    with (out.parents[1] / "begun").open("a", encoding="utf-8") as file:
        file.write(f"{what}\n")


def begun(out: Path) -> list[str]:
    file = out.parents[1] / "begun"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def content(out: Path) -> dict[str, object]:
    """The hashes of the bundle's files. Each compilation gives other bytes, so for compiled files it has the
    measured errors, which come from the hidden states that the compiled parts computed."""
    found: dict[str, object] = {
        path.relative_to(out).as_posix(): "" if "_ctx" in path.name else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in out.rglob("*")
        if path.is_file() and path.name not in ("npu.json", "hashes.json")
    }
    report = out / "npu.json"
    if report.exists():
        found["npu.json"] = json.loads(report.read_bytes()) | {"compile_s": 0}
    return found


def main(kind: str, folder: Path, seed: int, count: int) -> None:
    task, out, source = TASKS[kind], folder / "models" / "bundle", folder / "source"
    out.parent.mkdir()
    write_tiny_folder(source)
    events, renames = run_forked(task, source, out, 0)
    expected, names = content(out), [name for name in begun(out) if name in _BEGINS[kind]]
    assert expected and names == list(_BEGINS[kind]), names
    chosen = random.Random(seed).sample(range(1, events + 1), min(count or events, events))
    points = sorted({*chosen, *renames, *(point + 1 for point in renames if point < events)})
    continued = 0
    for point in points:
        shutil.rmtree(out, ignore_errors=True)
        run_forked(task, source, out, point)
        assert not out.exists() or content(out) == expected, f"point {point}: the bundle is not complete"
        finished = len(names) if out.exists() else unfinished_pieces(out) or 0
        begun(out)
        if not out.exists():
            run_forked(task, source, out, 0)
            again = [name for name in begun(out) if name in _BEGINS[kind]]
            assert again == names[finished:], f"point {point}: {finished} pieces were finished, and {again} began"
            continued += finished > 0
        else:
            shutil.rmtree(unfinished_folder(out), ignore_errors=True)  # as the next plan does
        assert content(out) == expected, f"point {point}: another bundle"
        assert kind == "pieces" or check_hashes(out) == []
        left = {path.relative_to(out.parent).as_posix() for path in out.parent.rglob("*") if out not in path.parents}
        assert left <= {"bundle", ".build", ".bundle.lock"}, f"point {point} left {left}"
    print(json.dumps({"events": events, "points": len(points), "continued": continued}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
