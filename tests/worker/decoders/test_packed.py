"""The file of packed weights: made once, mapped by the next load, and never a reason for a model not to load."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
from msgspec import Raw

from gateway import child
from gateway.activity import NO_MEMORY
from gateway.builder import build
from gateway.builder.build import copy_bundle
from gateway.bundles.bundle import ROWS_FILE, load_bundle
from gateway.bundles.disk import folder_bytes
from gateway.bundles.hashes import CHECKED_FILE
from gateway.bundles.stamp import COPIED_FILE
from gateway.errors import BundleError, EngineFailed
from gateway.worker.decoders import pack as pack_module
from gateway.worker.decoders import packed, row_record
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.decoders.onnx import SessionOptions
from gateway.worker.decoders.pack import pack
from gateway.worker.decoders.packed import PackRequest, open_packed, pack_once, packed_path
from tests.support.tiny import build_tiny

IDS = (1, 2, 3, 4, 5)


@pytest.fixture
def graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With space on the disk."""
    monkeypatch.setattr(packed, "LEAST_BYTES", 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 40)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    return build_tiny(tmp_path) / "model.onnx"


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were made. They are made in this process, which is faster."""
    made: list[str] = []

    def run(module: str, request: PackRequest, what: str, is_apart: bool) -> Raw:
        made.append(Path(request.out).name)
        return Raw(msgspec.json.encode(pack(request)))

    monkeypatch.setattr(child, "run_in_child", run)
    return made


class Opened(NamedTuple):
    files: list[str]  # that were opened, in order
    logits: Logits


@pytest.fixture
def open_decoder(graph: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Opened]:
    real = packed.open_session

    def load() -> Opened:
        opened: list[str] = []

        def recorded(path: Path, *options: Any) -> object:
            opened.append(path.name)
            return real(path, *options)

        with monkeypatch.context() as patch:
            patch.setattr(packed, "open_session", recorded)
            decoder = CpuDecoder(load_bundle(graph.parent), slots=1, context_length=64, keeps_record=True)
        logits = decoder.verify(decoder.new_cache(), IDS).copy()
        decoder.close()
        return Opened(opened, logits)

    return load


def hidden(graph: Path) -> Sequence[str]:
    return sorted(path.suffix for path in graph.parent.glob(".packed-*"))


def test_second_load_maps_the_packed_weights(graph: Path, open_decoder: Callable[[], Opened]) -> None:
    stages: list[str] = []
    plain = open_decoder()
    assert plain.files == ["model.onnx"]
    pack_once(graph, stages.append)  # in its child process
    assert len(stages) == 1 and hidden(graph) == [".bin", ".onnx"]
    pack_once(graph, stages.append)
    assert len(stages) == 1
    opened = open_decoder()
    assert opened.files == [packed_path(graph).name]
    np.testing.assert_array_equal(opened.logits, plain.logits)
    entries = packed_path(graph).read_bytes()
    assert b"prepacked_0" in entries and b"MatMulNBits+" in entries


@pytest.mark.parametrize(
    "damage", ["a byte", "constant", "truncated", "empty", "missing", "graph", "a byte of the graph"]
)
def test_damaged_file_is_made_again(
    graph: Path, open_decoder: Callable[[], Opened], packs: list[str], damage: str
) -> None:
    pack_once(graph, lambda stage: None)
    path, weights = packed_path(graph), packed_path(graph).with_suffix(".bin")
    content = bytearray(weights.read_bytes())
    match damage:
        case "a byte":
            middle = len(content) // 2
            content[middle : middle + 4096] = bytes(255 - byte for byte in content[middle : middle + 4096])
            weights.write_bytes(content)
        case "constant":  # of the graph, before the packed weights
            content[0] ^= 255
            weights.write_bytes(content)
        case "truncated":
            weights.write_bytes(content[: len(content) // 2])
        case "empty":
            weights.write_bytes(b"")
        case "missing":
            weights.unlink()
        case "graph":
            path.write_bytes(path.read_bytes()[:1000])
        case "a byte of the graph":  # an attribute's name: the library has no reason to refuse it
            path.write_bytes(path.read_bytes().replace(b"epsilon", b"epsilom", 1))
    assert open_decoder().files[-1] == "model.onnx"
    pack_once(graph, lambda stage: None)
    assert packs == [path.name] * 2
    assert open_decoder().files == [path.name]


def test_other_conditions_make_another_file(
    graph: Path, packs: list[str], open_decoder: Callable[[], Opened], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack_once(graph, lambda stage: None)
    monkeypatch.setattr(row_record, "processor", lambda: "another one")
    assert open_decoder().files == ["model.onnx"]
    (graph.parent / ".packed-left").mkdir()  # by a killed program
    pack_once(graph, lambda stage: None)
    assert len(set(packs)) == 2 and hidden(graph) == [".bin", ".onnx"]


@pytest.mark.parametrize("reason", ["small", "disk"])
def test_nothing_is_packed_without_need_or_space(
    graph: Path, packs: list[str], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "small":
        monkeypatch.setattr(packed, "LEAST_BYTES", 1 << 40)
    else:
        usage = shutil.disk_usage(graph.parent)._replace(free=1_000_000_000)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    pack_once(graph, lambda stage: None)
    assert not packs and not hidden(graph)


def fails(monkeypatch: pytest.MonkeyPatch, result: Raw | BaseException) -> list[str]:
    """Let the child process end so. Returns the files that it shall make."""
    tries: list[str] = []

    def run(module: str, request: PackRequest, what: str, is_apart: bool) -> Raw:
        tries.append(request.out)
        if isinstance(result, Raw):
            return result
        raise result

    monkeypatch.setattr(child, "run_in_child", run)
    return tries


def let_an_hour_pass(graph: Path) -> None:
    os.utime(packed_path(graph).with_suffix(".none"), (1_000_000_000, 1_000_000_000))


def test_weights_that_cannot_be_packed_are_tried_once(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "_moved", lambda *files: {})
    assert not pack(PackRequest(str(graph), str(packed_path(graph)))) and not hidden(graph)
    tries = fails(monkeypatch, Raw(b"false"))
    for _ in range(2):
        pack_once(graph, lambda stage: None)
        let_an_hour_pass(graph)
    assert len(tries) == 1 and hidden(graph) == [".none"]


@pytest.mark.parametrize("end", [KeyboardInterrupt(), BundleError("crashed")])  # nothing handles the first, as a kill
def test_load_that_ends_while_it_packs_is_not_the_same_again_for_an_hour(
    graph: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    tries = fails(monkeypatch, end)

    def load() -> int:
        with suppress(KeyboardInterrupt):
            pack_once(graph, lambda stage: None)
        return len(tries)

    assert [load(), load()] == [1, 1]
    let_an_hour_pass(graph)
    (graph.parent / ".packed-left").mkdir()  # of the child that ended with its load
    assert load() == 2 and hidden(graph) == [".none"]


def test_of_two_loads_at_the_same_time_one_packs(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin_elsewhere(path: Path) -> bool:
        packed_path(path).with_suffix(".none").touch()
        (path.parent / ".packed-its.work").mkdir()
        return True

    tries, stages = fails(monkeypatch, Raw(b"true")), list[str]()
    monkeypatch.setattr(packed, "_has_space", begin_elsewhere)  # between the look at the file and the try
    pack_once(graph, stages.append)
    assert not tries and not stages and hidden(graph) == [".none", ".work"]


def test_full_disk_is_tried_again_when_there_is_space(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = fails(monkeypatch, BundleError("No space left on device"))
    spaces = iter([True, False, False, True, True])  # before the first try, after it, and at the next two loads
    monkeypatch.setattr(packed, "_has_space", lambda path: next(spaces))
    for expected in (1, 1, 2):
        pack_once(graph, lambda stage: None)
        assert len(tries) == expected


def test_short_memory_is_no_damage(graph: Path, packs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def open_session(path: Path, options: SessionOptions) -> None:
        opened.append(path)
        raise EngineFailed(f"{path.name} cannot be loaded: {NO_MEMORY}")

    opened: list[Path] = []
    pack_once(graph, lambda stage: None)
    monkeypatch.setattr(packed, "open_session", open_session)
    with pytest.raises(EngineFailed):
        open_packed(graph, SessionOptions())
    assert opened == [packed_path(graph)] and opened[0].is_file()


def test_constant_can_have_no_length_in_the_graph(graph: Path) -> None:
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name == "rope.cos":
            entries = [entry for entry in tensor.external_data if entry.key != "length"]
            del tensor.external_data[:]
            tensor.external_data.extend(entries)
    onnx.save(model, graph)
    assert pack(PackRequest(str(graph), str(packed_path(graph)))) and hidden(graph) == [".bin", ".onnx"]


def test_folder_that_cannot_be_written_is_an_error_of_the_child_only(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be written"):
        pack(PackRequest(str(graph), str(tmp_path / "missing" / ".packed-1.onnx")))
    with pytest.raises(BundleError):
        pack(PackRequest(str(graph.with_name("no.onnx")), str(packed_path(graph))))
    assert not hidden(graph)


def test_copy_of_a_bundle_has_no_packed_weights(
    graph: Path, packs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []
    monkeypatch.setattr(build, "require_space", lambda sizes, what: needed.extend(sizes.values()))
    size = folder_bytes(graph.parent)
    pack_once(graph, lambda stage: None)
    (graph.parent / ".packed-left").mkdir()  # by a killed program, as the next two
    for unfinished in (Path(".packed-left", "saved.onnx"), f"{ROWS_FILE}.123", f".{CHECKED_FILE}.new"):
        (graph.parent / unfinished).write_bytes(b"unfinished")
    copy = copy_bundle(graph.parent, tmp_path / "copy")
    assert packs and hidden(graph)
    of_the_copy = [CHECKED_FILE, COPIED_FILE]
    assert sorted(path.name for path in copy.iterdir() if path.name.startswith(".")) == of_the_copy
    assert (copy / "model.onnx.data").is_file()
    assert needed == [size]
