"""`find_config` and `read_config`: where the configuration lies, and which values it may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.genie.config import Dialog, bundle_folder, find_config, read_config
from gateway.errors import BundleError
from tests.support.npu.genie_layouts import Change, write_layout


def dialog(tmp_path: Path, change: Change) -> Dialog:
    binary = tmp_path / "tiny_part_1_of_1.bin"
    binary.write_bytes(b"\x01")
    return read_config(write_layout(tmp_path / "bundle", "geniex", [binary], change))[1]


@pytest.mark.parametrize(
    ("written", "path", "found"),
    [
        (["genie_config.json"], "genie_config.json", "genie_config.json"),
        (["other.json"], "other.json", "other.json"),
        (["genie_config.json"], "", "genie_config.json"),
        (["config.json"], "", "config.json"),
        (["config.json", "genie_config.json"], "", "genie_config.json"),
        (["config.json", "old/config.json"], "", "config.json"),
        (["model-geniex/genie_config.json", "README.md"], "", "model-geniex/genie_config.json"),
        (["model/config.json"], "", "model/config.json"),
    ],
)
def test_path_names_file_or_folder(tmp_path: Path, written: list[str], path: str, found: str) -> None:
    for name in written:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}", encoding="utf-8")
    assert find_config(tmp_path / path) == tmp_path / found


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ([], "no Genie configuration at bundle; `path` names the bundle's folder, or its genie_config.json"),
        (["a/b/genie_config.json"], "no Genie configuration at bundle"),
        (["a/genie_config.json", "b/genie_config.json"], "no Genie configuration at bundle"),
    ],
)
def test_folder_without_one_configuration_is_refused(tmp_path: Path, written: list[str], words: str) -> None:
    for name in written:
        (tmp_path / "bundle" / name).parent.mkdir(parents=True)
        (tmp_path / "bundle" / name).write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=words):
        find_config(tmp_path / "bundle")


def test_folder_of_a_path_is_known_without_its_files() -> None:
    assert bundle_folder(Path("models/qwen3-4b.v2")) == Path("models/qwen3-4b.v2")
    assert bundle_folder(Path("models/qwen/config.json")) == Path("models/qwen")


@pytest.mark.parametrize(
    ("context", "bos_id"),
    [({"bos-token": 1}, 1), ({"bos-token": 0}, 0), ({"bos-token": -1}, None), ({"bos-token": None}, None), ({}, None)],
)
def test_model_without_begin_token_is_read(tmp_path: Path, context: dict[str, Any], bos_id: int | None) -> None:
    def change(dialog: dict[str, Any]) -> None:
        del dialog["context"]["bos-token"]
        dialog["context"].update(context)

    assert dialog(tmp_path, change).context.bos_id == bos_id


@pytest.mark.parametrize("written", [3, [3], [3, 2]])
def test_end_token_is_an_id_or_several(tmp_path: Path, written: int | list[int]) -> None:
    read = dialog(tmp_path, lambda dialog: dialog["context"].update({"eos-token": written}))
    assert read.context.eos_ids == (written if isinstance(written, list) else [written])


@pytest.mark.parametrize("embedding", [{"version": 1, "size": 256, "datatype": "float32"}, {"size": 2048}])
def test_dialog_that_takes_embeddings_is_refused_as_vision_model(tmp_path: Path, embedding: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"tiny_decoder-geniex is a vision model.*npu-gateway catalog"):
        dialog(tmp_path, lambda dialog: dialog.update(embedding=embedding))


def test_metadata_can_say_that_the_model_takes_images(tmp_path: Path) -> None:
    path = tmp_path / "genie_config.json"
    path.write_text(json.dumps({"pipeline": {}}), encoding="utf-8")
    (tmp_path / "metadata.json").write_text(json.dumps({"genie": {"supports_vision": True}}), encoding="utf-8")
    with pytest.raises(BundleError, match="is a vision model"):
        read_config(path)
    with pytest.raises(BundleError, match="is a vision model"):
        find_config(tmp_path)


@pytest.mark.parametrize("options", [[], "poll", 1])
def test_options_of_the_backend_are_a_table(tmp_path: Path, options: Any) -> None:
    with pytest.raises(BundleError, match=r"genie_config.json .*QnnHtp"):
        dialog(tmp_path, lambda table: table["engine"]["backend"].update(QnnHtp=options))


def test_backend_without_options_is_read(tmp_path: Path) -> None:
    assert dialog(tmp_path, lambda table: table["engine"]["backend"].update(QnnHtp=None)).engine.backend.htp is None
