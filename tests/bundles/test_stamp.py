"""`plan_bundle` decides from the stamp whether a bundle must be built."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from gateway.bundles.bundle import load_bundle
from gateway.bundles.encoder.bundle import ENCODER_FILE
from gateway.bundles.hashes import CHECKED_FILE, HASHES_FILE, check_hashes, is_known_intact, write_hashes
from gateway.bundles.stamp import (
    BUNDLE_FORMAT,
    COPIED_FILE,
    RECIPE_FILE,
    STAMP_FILE,
    BuildRequest,
    BundlePlan,
    Loss,
    Stamp,
    forget_failure,
    has_float_weights,
    npu_folder,
    plan_bundle,
    plan_start,
    read_failure,
    read_stamp,
    unfinished_folder,
    unfinished_folders,
    unfinished_pieces,
    write_failure,
)
from gateway.errors import BundleError


def options(path: str = "tiny", source: str = "model.gguf", **values: object) -> BuildRequest:
    fields = {"provider": "auto", "activations": "int8", "models_dir": ""} | values
    return BuildRequest(path=path, source=source, **fields)  # type: ignore[arg-type]


def write_bundle(folder: Path, target: str | None, bundle_format: int = BUNDLE_FORMAT) -> Path:
    """A folder with a stamp, or without one if `target` is None."""
    folder.mkdir()
    if target is not None:
        stamp = {"format": bundle_format, "target": target, "source": "model.gguf"}
        (folder / STAMP_FILE).write_text(json.dumps(stamp), encoding="utf-8")
    return folder


def plan(tmp_path: Path, chosen: BuildRequest, *, npu: bool = False) -> BundlePlan:
    return plan_bundle(chosen, tmp_path, lambda: npu)


def test_missing_bundle_is_built(tmp_path: Path) -> None:
    assert plan(tmp_path, options()) == BundlePlan(folder=tmp_path / "tiny", for_npu=False, is_ready=False)


@pytest.mark.parametrize(
    ("target", "bundle_format", "is_ready"),
    [
        ("cpu", BUNDLE_FORMAT, True),
        ("cpu-float", BUNDLE_FORMAT, False),
        ("cpu", BUNDLE_FORMAT - 1, False),
        ("cpu", BUNDLE_FORMAT + 1, False),
        ("fp16", BUNDLE_FORMAT, True),
        (None, 0, True),
    ],
    ids=["same", "other-activations", "older", "newer", "npu-bundle-at-path", "no-stamp"],
)
def test_existing_bundle_is_built_again_if_it_differs(
    tmp_path: Path, target: str | None, bundle_format: int, is_ready: bool
) -> None:
    folder = write_bundle(tmp_path / "tiny", target, bundle_format)
    assert plan(tmp_path, options()) == BundlePlan(folder=folder, for_npu=False, is_ready=is_ready)


@pytest.mark.parametrize(
    ("stored", "wanted", "is_ready"),
    [
        ("int4", "int4", True),
        ("int4", "int8", False),
        ("float16", "int4", False),
        ("", "int4", True),
        ("", "float16", False),
        ("source", "float16", True),
    ],
    ids=str,
)
def test_bundle_with_other_weights_is_built_again(tmp_path: Path, stored: str, wanted: str, is_ready: bool) -> None:
    """Not one of a quantised source, which keeps its own numbers. Bundles without the key have int4."""
    folder = write_bundle(tmp_path / "tiny", "cpu")
    stamp = Stamp(format=BUNDLE_FORMAT, target="cpu", source="model", precision=stored)
    (folder / STAMP_FILE).write_bytes(msgspec.json.encode(stamp))
    assert plan(tmp_path, options(precision=wanted)).is_ready == is_ready


def test_stamp_says_its_numbers_in_words() -> None:
    loss = Loss(before=18.4512, after=19.02, agreement=0.9312, tokens=500)
    stamp = Stamp(format=1, target="cpu", source="model", precision="int4", loss=loss)
    assert stamp.numbers() == "int4: perplexity 18.45 -> 19.02, same first choice 93.1%"
    assert replace(stamp, precision="source", loss=None).numbers() == "quantised by its source"


def test_outdated_bundle_without_source_is_used(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny", "cpu", BUNDLE_FORMAT - 1)
    assert plan(tmp_path, options(source="")).is_ready


def test_npu_has_its_own_bundle_folder(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "tiny", "cpu")
    expected = BundlePlan(folder=npu_folder(path), for_npu=True, is_ready=False)
    assert plan(tmp_path, options(), npu=True) == expected
    write_bundle(npu_folder(path), "fp16")
    assert plan(tmp_path, options(), npu=True).is_ready


@pytest.mark.parametrize(("target", "source"), [("fp16", "model.gguf"), ("cpu", "")], ids=["npu-bundle", "no-source"])
def test_npu_is_not_detected_if_nothing_can_be_built_for_it(tmp_path: Path, target: str, source: str) -> None:
    write_bundle(tmp_path / "tiny", target)

    def detect() -> bool:
        raise AssertionError("detection starts a process")

    assert plan_bundle(options(source=source), tmp_path, detect).folder == tmp_path / "tiny"


@pytest.mark.parametrize(
    ("chosen", "message"),
    [(options(path=""), "needs `path`"), (options(source=""), "There is no bundle tiny.")],
    ids=["no-path", "no-bundle-no-source"],
)
def test_plan_without_path_or_source_is_refused(tmp_path: Path, chosen: BuildRequest, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        plan(tmp_path, chosen)


def test_flipped_bits_of_small_files_raise_nothing_else(tiny: Path, tmp_path: Path) -> None:
    """One damaged model must not stop the gateway."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny, folder)
    write_hashes(folder)
    for name in ("bundle.json", CHECKED_FILE, HASHES_FILE, "genai_config.json"):
        assert check_hashes(folder) == []
        content = (folder / name).read_bytes()
        for position in range(0, len(content), 1 + len(content) // 40):
            for bit in (1, 128):
                flipped = bytearray(content)
                flipped[position] ^= bit
                (folder / name).write_bytes(flipped)
                assert is_known_intact(folder) in (name == CHECKED_FILE, False)
                with suppress(BundleError):
                    load_bundle(folder)
                read_stamp(folder)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:org/model", True),
        ("hf:org/model/folder@main", True),
        ("hf:org/model:Q4_0", False),
        ("hf:org/model/x.gguf", False),
        ("pypi:name==1.0", False),
        ("weights", True),
        ("bundle", False),
        ("model.gguf", False),
        ("gone", False),
    ],
)
def test_float_weights(tmp_path: Path, source: str, expected: bool) -> None:
    for folder in ("weights", "bundle"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").touch()
    (tmp_path / "bundle" / "genai_config.json").touch()
    (tmp_path / "model.gguf").touch()
    assert has_float_weights(source, tmp_path) == expected


def test_cpu_answers_until_the_bundle_for_the_npu_is_there(tmp_path: Path) -> None:
    chosen, folder = options(source="hf:org/model"), tmp_path / "tiny"
    on_cpu = BundlePlan(folder=folder, for_npu=False, is_ready=False, waits_for_npu=True)
    assert plan_start(chosen, tmp_path, lambda: True) == on_cpu
    assert plan_start(chosen, tmp_path, lambda: False) == plan(tmp_path, chosen)
    write_bundle(folder, "cpu")
    assert plan_start(chosen, tmp_path, lambda: True).is_ready
    write_bundle(npu_folder(folder), "qnn")
    assert plan_start(chosen, tmp_path, lambda: True).folder == npu_folder(folder)
    write_failure(folder, "hf:org/model", "The driver refuses it.")  # when it was loaded
    assert plan_start(chosen, tmp_path, lambda: True).folder == folder
    assert plan_start(options(), tmp_path, lambda: True).folder == npu_folder(folder)  # a GGUF file: as before


def test_copied_bundle_waits_for_nothing(tmp_path: Path) -> None:
    write_bundle(tmp_path / "tiny", None)
    (tmp_path / "tiny" / COPIED_FILE).touch()
    planned = plan_start(options(source="hf:org/bundle"), tmp_path, lambda: True)
    assert planned.is_ready and planned.folder == tmp_path / "tiny" and not planned.waits_for_npu


def test_encoder_on_the_cpu_waits_for_nothing_and_keeps_its_weights(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny", "cpu")
    (folder / ENCODER_FILE).touch()
    chosen = options(source="hf:org/encoder", precision="int8")  # the key is for chat models
    assert plan(tmp_path, chosen).is_ready
    planned = plan_start(chosen, tmp_path, lambda: True)
    assert planned.folder == folder and planned.is_ready and not planned.waits_for_npu


def test_failure_holds_for_its_source_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_failure(tmp_path, "hf:a/b", "reason")
    found = read_failure(tmp_path, "hf:a/b")
    assert found is not None and found.message == "reason"
    assert read_failure(tmp_path, "hf:a/c") is None
    with monkeypatch.context() as patch:
        patch.setattr("gateway.bundles.stamp.BUNDLE_FORMAT", BUNDLE_FORMAT + 1)
        assert read_failure(tmp_path, "hf:a/b") is None
    forget_failure(tmp_path)
    assert read_failure(tmp_path, "hf:a/b") is None


def test_unfinished_pieces_are_counted_and_removed_when_the_bundle_is_there(tmp_path: Path) -> None:
    bundle = npu_folder(tmp_path / "tiny")
    assert unfinished_pieces(bundle) is None and unfinished_folders(tmp_path) == []
    work = unfinished_folder(bundle)
    for name in ("tables", "part0", "part1.12345678.new"):
        (work / name).mkdir(parents=True)
    (work / RECIPE_FILE).touch()
    assert unfinished_pieces(bundle) == 2 and unfinished_folders(tmp_path) == [work]
    write_bundle(bundle, "qnn")
    assert plan(tmp_path, options(), npu=True).is_ready and not work.exists()
