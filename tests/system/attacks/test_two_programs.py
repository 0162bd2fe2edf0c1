"""Two programs that use one folder: builds wait for each other, and a running gateway keeps its open files."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gateway.builder.build import build_bundle
from gateway.bundles.hashes import check_hashes
from gateway.bundles.replace import exclusive
from gateway.bundles.stamp import read_stamp
from gateway.qnn.compile import compile_cached
from gateway.qnn.device import NpuDevice
from tests.support.npu.fixtures import pulled
from tests.support.npu.onnx_graph import write_graph
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE_S, environment, gateway
from tests.support.server import Running, config_of, serving
from tests.support.tiny import build_tiny, write_tiny_folder
from tests.system.faults.client import PROMPT, local_engine


def quiet(stage: str, fraction: float) -> None:
    """A `Progress` that shows nothing."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose configuration has one model that must be built."""
    write_tiny_folder(tmp_path / "models" / "source")
    text = '[models.m]\npath = "m"\nsource = "models/source"\nprovider = "cpu"\n'
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    return tmp_path


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "gateway", *arguments]
    with subprocess.Popen(
        command, cwd=folder, env=environment(), encoding="utf-8", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_line(process: subprocess.Popen[str], words: str) -> str:
    """Read stderr until a line has the words. Returns all that was read."""
    assert process.stderr is not None
    timer = threading.Timer(PATIENCE_S, process.kill)
    timer.start()
    text = ""
    while words not in text:
        line = process.stderr.readline()
        assert line, text
        text += line
    timer.cancel()
    return text


def test_second_program_waits_and_does_not_build_again(folder: Path) -> None:
    out = folder / "models" / "m"
    with ExitStack() as lock, ExitStack() as running:
        lock.enter_context(exclusive(out))
        second = running.enter_context(started(folder, "models", "--prepare", "--json"))
        wait_for_line(second, "waiting for another program that writes m")
        build_bundle(folder / "models" / "source", out, progress=quiet)
        made = (out / "bundle.json").stat().st_mtime_ns
        lock.close()
        output, errors = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0 and '"state": "ready"' in output
    assert "writing the layers" not in errors
    assert (out / "bundle.json").stat().st_mtime_ns == made
    assert names(out.parent) == ["m", "source"]


def test_many_programs_at_once_leave_one_complete_bundle(folder: Path) -> None:
    """Both kinds: those that need the bundle, and those that replace it."""
    commands = [("models", "--prepare"), ("build", "models/source", "models/m")] * 2
    with ExitStack() as stack:
        for process in [stack.enter_context(started(folder, *command)) for command in commands]:
            _, errors = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 0, errors
    assert check_hashes(folder / "models" / "m") == []
    assert names(folder / "models") == ["m", "source"]


def test_lock_of_a_killed_program_does_not_block(folder: Path) -> None:
    out = folder / "models" / "m"
    program = (
        "import sys, time; from pathlib import Path; from gateway.bundles.replace import exclusive\n"
        "with exclusive(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(3600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(out)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline().strip() == b"held"
        holder.kill()
    done = gateway("models", "--prepare", cwd=folder)
    assert done.returncode == 0 and "waiting" not in done.stderr
    assert names(out.parent) == ["m", "source"]


def answer(server: Running) -> str:
    body = {"model": "m", "prompt": PROMPT, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    with server.http() as client:
        return str(client.post("/v1/completions", json=body).raise_for_status().json()["choices"][0]["text"])


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not rename a folder whose files are open")
def test_running_gateway_keeps_the_files_of_a_replaced_bundle(tmp_path: Path) -> None:
    first, second = build_tiny(tmp_path / "first"), build_tiny(tmp_path / "second", seed=1)
    out = Path(shutil.copytree(first, tmp_path / "m"))
    engine = local_engine("m", out)
    engine._integrity._pause_s = 0.05
    with serving(config_of({"m": engine._model}), {"m": engine}) as server:
        before = answer(server)
        build_bundle(tmp_path / "second" / "source", out, progress=quiet)
        assert answer(server) == before
        assert engine._integrity.damage == ""
    engine = local_engine("m", out)
    with serving(config_of({"m": engine._model}), {"m": engine}) as server:
        assert answer(server) != before
    assert check_hashes(second) == check_hashes(out) == []


def test_bundle_in_use_is_replaced_at_the_next_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: the folder cannot be renamed while a gateway has its files open."""
    from gateway.bundles import replace
    from gateway.errors import BundleError

    out = build_tiny(folder / "old")
    out = out.rename(folder / "models" / "m")
    rename = replace.rename

    def refuse(source: Path, target: Path) -> None:
        if source == out:
            raise PermissionError(13, "The process cannot access the file because it is being used")
        rename(source, target)

    monkeypatch.setattr(replace, "rename", refuse)
    new = write_tiny_folder(folder / "new", seed=1)
    with pytest.raises(BundleError, match=r"The new m is complete, but .* Stop the programs that use it"):
        build_bundle(new, out, progress=quiet)
    assert check_hashes(out) == [] and (read_stamp(out) or pytest.fail()).source == "source"
    monkeypatch.undo()
    assert gateway("models", "--prepare", cwd=folder).returncode == 0
    assert check_hashes(out) == [] and (read_stamp(out) or pytest.fail()).source == "new"
    assert names(folder / "models") == ["m", "source"]


def test_two_workers_compile_one_graph_once(npu: NpuDevice, tmp_path: Path) -> None:
    graph = write_graph(pulled(tmp_path) / "plain.onnx", "Sigmoid", 1, [1, 8, 64])
    stages: list[str] = []
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(compile_cached, graph, npu, {}, stages.append) for _ in range(3)]
    (compiled,) = {each.result() for each in found}
    assert stages.count("compiling plain.onnx for the NPU") == 1
    assert set(stages) <= {"compiling plain.onnx for the NPU", "waiting for another program that compiles plain.onnx"}
    assert names(tmp_path / "compiled") == [compiled.parent.name]
    assert check_hashes(compiled.parent) == []


def test_interrupt_while_waiting_ends_the_program(folder: Path) -> None:
    with exclusive(folder / "models" / "m"), started(folder, "build", "models/source", "models/m") as waiting:
        wait_for_line(waiting, "waiting for another program that writes m")
        waiting.send_signal(signal.SIGINT)
        _, errors = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == 130 and "Traceback" not in errors
    assert names(folder / "models") == ["source"]
