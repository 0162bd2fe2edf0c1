"""Model packages of ONNX Runtime: which variant is read, and where its tokenizer is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.bundle import load_bundle
from gateway.bundles.model_package import variant_folder
from gateway.errors import BundleError
from tests.support.model_package import CPU, DIGEST, NPU, write_manifest, write_package


@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
def test_npu_variant_is_read_with_shared_tokenizer(tiny: Path, tmp_path: Path, external: bool) -> None:
    package = write_package(tmp_path / "p", tiny, {"cpu": CPU, "qnn-x-elite": NPU}, external=external)
    bundle = load_bundle(package)
    assert bundle.folder.name == "qnn-x-elite"
    assert bundle.tokenizer_path == package / "shared_assets" / f"sha256-{DIGEST}" / "tokenizer.json"
    assert bundle.config == load_bundle(bundle.folder).config  # `path` may also be the variant itself


def test_variant_directory_is_used(tiny: Path, tmp_path: Path) -> None:
    package = write_package(tmp_path / "p", tiny, {"x": NPU | {"variant_directory": "files/x-elite"}})
    assert load_bundle(package).folder == package / "files" / "x-elite"


def test_package_without_npu_variant_names_its_runtimes(tiny: Path, tmp_path: Path) -> None:
    package = write_package(tmp_path / "p", tiny, {"a": CPU, "b": NPU | {"device": "gpu"}})
    with pytest.raises(BundleError, match=r"p is a model package for other runtimes \(CPUEx.*, QNNEx.*\)\. Take its"):
        load_bundle(package)


def test_package_with_several_npu_variants_names_them(tiny: Path, tmp_path: Path) -> None:
    package = write_package(tmp_path / "p", tiny, {"x1": NPU, "x2": NPU}, external=True)
    with pytest.raises(BundleError, match="several variants for the NPU: models/model/x1, models/model/x2"):
        load_bundle(package)
    assert load_bundle(package / "models" / "model" / "x2").folder.name == "x2"


def test_moved_asset_and_inner_folder_are_found(tiny: Path, tmp_path: Path) -> None:
    package = write_package(tmp_path / "p", tiny, {"x": NPU})
    (package / "shared_assets").rename(package / "other")
    asset = package / "other" / f"sha256-{DIGEST}"
    (asset / "text").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (asset / name).rename(asset / "text" / name)
    config = json.loads((package / "x" / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["tokenizer_dir"] = f"sha256:{DIGEST}/text"
    (package / "x" / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    moved = {f"sha256:{DIGEST}": f"other/sha256-{DIGEST}"}
    write_manifest(package, components={"model": {"variants": {"x": NPU}}}, shared_assets=moved)
    assert load_bundle(package).tokenizer_path == asset / "text" / "tokenizer.json"


def test_folder_with_genai_config_is_no_package(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "flat"))
    write_manifest(folder, components={})
    assert variant_folder(folder) == folder


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"components": {"a": {"variants": {}}, "b": {"variants": {}}}}, "of 2 components, and the gateway reads one"),
        ({"components": {"model": {"variants": {}}}}, r"other runtimes \(no variant\)"),
        ({"components": {"model": {}}}, "manifest.json cannot be read"),
        ({"components": {"model": "../elsewhere"}}, "a path outside the package"),
        ({"components": {"model": "/etc"}}, "a path outside the package"),
        ({"components": {"model": "a\0b"}}, "a path outside the package"),
        ({"components": {"model": {"variants": {"a\0b": NPU}}}}, "a path outside the package"),
        ({"components": {"model": "gone"}}, "component|gone"),
        ({"components": {"model": {"variants": {"..\\x": NPU}}}}, "a path outside the package"),
        ({"components": {"model": {"variants": {"x": NPU}}}, "shared_assets": {f"sha256:{DIGEST}": "/etc"}}, "outside"),
        ({}, "manifest.json cannot be read"),
    ],
)
def test_unusable_manifest_gives_one_line(tiny: Path, tmp_path: Path, content: dict[str, Any], words: str) -> None:
    package = write_manifest(write_package(tmp_path / "p", tiny, {"x": NPU}), **content)
    with pytest.raises(BundleError, match=words) as raised:
        load_bundle(package)
    assert "\n" not in raised.value.message


def test_deeply_nested_manifest_gives_one_line(tmp_path: Path) -> None:
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    (tmp_path / "manifest.json").write_text(f'{{"components": {{"model": {deep}}}}}', encoding="utf-8")
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read: maximum recursion depth"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["sha256:zz", f"sha256:{DIGEST}/..", f"sha256:{DIGEST}/../../../x"])
def test_unusable_asset_reference_is_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    package = write_package(tmp_path / "p", tiny, {"x": NPU})
    config = json.loads((package / "x" / "genai_config.json").read_text(encoding="utf-8"))
    config["model"]["tokenizer_dir"] = name
    (package / "x" / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(BundleError, match=r"shared asset|outside|has no tokenizer\.json"):
        load_bundle(package)


def test_asset_reference_outside_package_is_refused(tiny: Path, tmp_path: Path) -> None:
    package = write_package(tmp_path / "p", tiny, {"x": NPU})
    (package / "manifest.json").unlink()
    with pytest.raises(BundleError, match="x: tokenizer_dir needs a model package"):
        load_bundle(package / "x")
