"""The sizes of the graphs, and their tensors, are those of the binaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.bundles.genie.bundle import GenieBundle, load_genie_bundle
from gateway.qnn.binary_info import Graph, Tensor, read_binary
from gateway.worker.genie.graph_sizes import warn_of_other_metadata, with_graph_sizes
from tests.support.npu.genie_layouts import Layout, write_layout
from tests.support.npu.htp_compile import context_binaries


def test_sizes_are_read_from_one_graph_in_each_binary(context_folder: Path, tmp_path: Path) -> None:
    write_layout(tmp_path, "aidevhome", context_binaries(context_folder))
    read = load_genie_bundle(tmp_path)
    assert (read.prompt_width, read.contexts) == (32, ())  # an estimate
    sized = with_graph_sizes(read, graphs_of(read))
    assert (sized.prompt_width, sized.contexts, sized.usable_context) == (8, (128,), 112)


def test_sizes_are_read_from_several_graphs_in_each_binary(published_bundle: Path) -> None:
    read = load_genie_bundle(published_bundle)
    sized = with_graph_sizes(read, graphs_of(read))
    assert (sized.prompt_width, sized.contexts) == (8, (64, 128))


def test_longer_context_than_that_of_the_graphs_is_corrected(
    published_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read = load_genie_bundle(published_bundle)
    sized = with_graph_sizes(replace(read, context_length=4096), graphs_of(read))
    assert (sized.context_length, sized.usable_context) == (128, 112)
    assert "states a context of 4096 tokens, and its graphs have 128: the graphs are right" in caplog.text
    assert with_graph_sizes(replace(read, context_length=100), graphs_of(read)).context_length == 100


@pytest.fixture
def described(published_bundle: Path, tmp_path: Path) -> tuple[Path, dict[str, list[Graph]]]:
    """A folder whose metadata.json describes the graphs of the binaries, which need not be in it."""
    graphs = {
        binary.name: list(read_binary(binary).graphs.values())
        for binary in load_genie_bundle(published_bundle).binaries
    }
    entries = {graph.name.partition("_")[2]: _entry(graph) for group in graphs.values() for graph in group}
    (tmp_path / "metadata.json").write_text(json.dumps({"model_files": entries}), encoding="utf-8")
    return tmp_path, graphs


def _entry(graph: Graph) -> dict[str, Any]:
    def tensor(each: Tensor) -> dict[str, Any]:
        scale = {"scale": each.scale, "zero_point": each.zero_point} if each.scale else None
        return {"shape": each.shape, "dtype": each.dtype, "quantization_parameters": scale}

    sides = {"inputs": graph.inputs, "outputs": graph.outputs}
    return {side: {each.name: tensor(each) for each in tensors} for side, tensors in sides.items()}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({}, ""),
        ({"shape": [1, 8, 255]}, "the shape [1, 8, 255] instead of [1, 8, 128] for logits of ar8_cl64_3_of_3"),
        ({"dtype": "uint8"}, "the type uint8 instead of uint16 for logits"),
        ({"quantization_parameters": {"scale": 1.0, "zero_point": 0}}, "another scale for logits"),
        ({"name": "/lm_head/logits.1"}, "the unknown tensor /lm_head/logits.1 of"),
    ],
)
def test_other_metadata_is_named_once_and_the_binaries_are_right(
    described: tuple[Path, dict[str, list[Graph]]],
    change: dict[str, Any],
    sentence: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder, graphs = described
    path = folder / "metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    outputs = metadata["model_files"]["ar8_cl64_3_of_3"]["outputs"]
    logits = outputs.pop("logits") | change
    outputs[logits.pop("name", "logits")] = logits
    path.write_text(json.dumps(metadata), encoding="utf-8")
    warn_of_other_metadata(folder, graphs)
    assert len(caplog.records) == bool(sentence) and sentence in caplog.text


@pytest.mark.parametrize("layout", ["geniex", "geniex-files", "genie-export"])
def test_metadata_of_every_exporter_describes_its_binaries(
    context_folder: Path, tmp_path: Path, layout: Layout, caplog: pytest.LogCaptureFixture
) -> None:
    read = load_genie_bundle(write_layout(tmp_path, layout, context_binaries(context_folder)))
    warn_of_other_metadata(
        read.folder, {binary.name: list(read_binary(binary).graphs.values()) for binary in read.binaries}
    )
    assert not caplog.records


def graphs_of(bundle: GenieBundle) -> list[Graph]:
    return [graph for binary in bundle.binaries for graph in read_binary(binary).graphs.values()]
