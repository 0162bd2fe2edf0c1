"""`read_metadata`: the width of a pass in each exporter's form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from gateway.bundles.genie.metadata import Metadata, read_metadata
from gateway.errors import BundleError
from tests.support.npu.genie_layouts import LAYOUTS, Layout, write_layout


@pytest.mark.parametrize("layout", LAYOUTS)
def test_width_is_read_from_each_layout(tmp_path: Path, layout: Layout) -> None:
    binary = tmp_path / "part_1_of_1.bin"
    binary.write_bytes(b"\x01" * 10_000)
    folder = write_layout(tmp_path / "bundle", layout, [binary]).parent
    names_contexts = layout in ("geniex", "genie-yaml")
    expected = None if layout == "aidevhome" else 8
    assert read_metadata(folder) == Metadata(prompt_width=expected, contexts=(128,) if names_contexts else ())


@pytest.mark.parametrize("flow", [None, False, True], ids=["flow lists", "block", "flow"])
def test_width_is_read_from_every_style_of_yaml(tmp_path: Path, flow: bool | None) -> None:
    graphs = {f"{name}_1_of_2": _input_ids([1, width]) for name, width in (("token", 1), ("prompt", 128))}
    text = yaml.safe_dump({"components": graphs}, default_flow_style=flow)
    (tmp_path / "metadata.yaml").write_text(text, encoding="utf-8")
    assert read_metadata(tmp_path).prompt_width == 128


@pytest.mark.parametrize("indent", [None, 2])
def test_width_is_read_from_shapes_in_json(tmp_path: Path, indent: int | None) -> None:
    files = {"part_1_of_2.bin": _input_ids([1, 32]), "part_2_of_2.bin": {"inputs": {"hidden": {"shape": [1, 64, 256]}}}}
    (tmp_path / "metadata.json").write_text(json.dumps({"model_files": files}, indent=indent), encoding="utf-8")
    assert read_metadata(tmp_path).prompt_width == 32


def test_width_is_read_from_graph_names(tmp_path: Path) -> None:
    names = "prompt_ar128_cl4096_1_of_3 token_ar1_cl4096_1_of_3 ar32_cl512_1_of_3"
    (tmp_path / "metadata.json").write_text(names, encoding="utf-8")
    assert read_metadata(tmp_path) == Metadata(prompt_width=128, contexts=(512, 4096))


def test_entry_of_graph_for_one_token_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_text(json.dumps({"a.bin": _input_ids([1, 1])}), encoding="utf-8")
    assert read_metadata(tmp_path) == Metadata()


def test_metadata_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "metadata.json").open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(BundleError, match=r"metadata\.json cannot be read: it has more than 64 MiB"):
        read_metadata(tmp_path)


def _input_ids(shape: list[int]) -> dict[str, object]:
    return {"inputs": {"input_ids": {"dtype": "int32", "shape": shape}}, "outputs": {"hidden": {"shape": [1, 1, 256]}}}
