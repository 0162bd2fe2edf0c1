"""Kills a pull at random points, before the k-th time that it writes or shows progress, while connections are cut too.

    python -m tests.support.kill_pull KIND FOLDER SEED COUNT

KIND: `zip` (AI Hub's bucket), `hub` (file by file), `gguf` (weights, without the build). After each kill the models
folder has no model or the complete one, and config.toml can be read. The next pull must succeed, use the bytes that are
there, and leave nothing else. Prints JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import zipfile
from pathlib import Path

from gateway.bundles.hashes import check_hashes
from gateway.child import Progress
from gateway.config.file import load_config
from gateway.pull.config_edit import add_model, find_user_config
from gateway.pull.download import Downloader
from gateway.pull.job import Surroundings
from gateway.pull.pull import pull
from gateway.qnn.chips import CHIPS
from tests.support.kill_points import run_forked
from tests.support.model_server import ModelServer, serve_models

_OWN = '[models.own]  # mine\nengine = "scripted"\n'
_PART = 600_000  # bytes of the weights
_LAST = 40  # events of the installation, which get half of the kills


def task(source: Path, out: Path, progress: Progress) -> None:
    """Pull what is written in `source` as the model `out`."""
    downloader = Downloader(lambda seconds: None)
    user = find_user_config(out.parents[1] / "config.toml")
    around = Surroundings(
        user=user,
        report=lambda stage, done, total: progress(stage, done / max(total, 1)),
        say=lambda line: None,
        find_chip=lambda: CHIPS[0],
        build=lambda name, source: None,
        downloader=downloader,
    )
    pulled = pull(source.read_text(encoding="utf-8"), out.name, around)
    add_model(user, pulled.name, pulled.table)
    downloader.close()


def offer(kind: str, server: ModelServer, folder: Path) -> tuple[str, int]:
    """Put the model on the server. Returns what to pull, and the bytes of the download."""
    chance = random.Random(5)
    files = {"genai_config.json": b'{"model": {"decoder": {}}}', "tokenizer.json": chance.randbytes(5_000)}
    files |= {f"part_{number}_of_2.bin": chance.randbytes(_PART) for number in (1, 2)}
    if kind == "hub":
        server.repos["org/model"] = files
        return "hf:org/model", sum(map(len, files.values()))
    if kind == "gguf":
        content = b"GGUF" + files["part_1_of_2.bin"]
        return server.add("m.gguf", content), len(content)
    with zipfile.ZipFile(folder / "m.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(f"m/{name}", content)
    content = (folder / "m.zip").read_bytes()
    return server.add("m.zip", content), len(content)


def state(out: Path) -> str:
    """ "absent", "installed" or "configured". Fails for a state that another program must not see."""
    weights = out.with_name("model.gguf")
    is_there = out.is_dir() or weights.is_file()
    if out.is_dir():
        assert check_hashes(out) == [] and len(list(out.glob("part_*"))) == 2
    if weights.is_file():
        assert weights.stat().st_size == _PART + 4
    config = load_config(out.parents[1] / "config.toml", {})
    assert (out.parents[1] / "config.toml").read_text(encoding="utf-8").startswith(_OWN)
    assert is_there or "model" not in config.models
    return "configured" if "model" in config.models else "installed" if is_there else "absent"


def left(out: Path) -> set[str]:
    """Files that belong to no state."""
    inside = {path.name for path in out.parent.iterdir() if path.name not in ("model", "model.gguf")}
    waiting = {path.name for path in (out.parent / ".pull").rglob("*")}
    return (inside | waiting) - {".pull", ".model.lock", ".model.gguf.pulled.json"}


def clear(out: Path) -> None:
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    (out.parents[1] / "config.toml").write_text(_OWN, encoding="utf-8")


def main(kind: str, folder: Path, seed: int, count: int) -> None:
    chance, out, source = random.Random(seed), folder / "models" / "model", folder / "what"
    found = {"absent": 0, "installed": 0, "configured": 0, "continued": 0}
    with serve_models() as server:
        os.environ["NPU_GATEWAY_MODEL_SERVER"] = server.url
        text, size = offer(kind, server, folder)
        source.write_text(text, encoding="utf-8")
        clear(out)
        events, _ = run_forked(task, source, out, 0)
        assert state(out) == "configured" and not left(out), left(out)
        paths = sorted({path for path, sent in server.bytes if sent > 100_000})
        points = chance.choices(range(1, events + 1), k=count - count // 2)
        points += chance.choices(range(max(1, events - _LAST), events + 1), k=count // 2)
        for point in points:
            clear(out)
            cut = server.fault_of(chance.choice(paths))
            cut.cuts = [chance.randrange(_PART) for _ in range(chance.randrange(3))]
            run_forked(task, source, out, point)
            server.settle()
            found[state(out)] += 1
            cut.cuts = []
            parts = sum(path.stat().st_size for path in out.parent.glob(".pull/model/**/*") if path.is_file())
            server.bytes.clear()
            run_forked(task, source, out, 0)
            again = sum(sent for _, sent in server.bytes)
            assert again <= size - parts + 70_000, f"point {point}: {parts} bytes were there, and {again} came again"
            found["continued"] += bool(parts > 100_000)
            assert state(out) == "configured", f"point {point}"
            assert not left(out), f"point {point} left {left(out)}"
    print(json.dumps({"events": events, "points": count} | found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
