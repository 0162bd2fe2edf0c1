"""`with_graph_sizes`: the width and the contexts that the binaries show."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from gateway.bundles.genie.bundle import load_genie_bundle
from gateway.worker.genie.graph_sizes import with_graph_sizes
from tests.support.npu.genie_layouts import write_layout
from tests.support.npu.htp_compile import context_binaries


def test_sizes_are_read_from_one_graph_in_each_binary(context_folder: Path, tmp_path: Path) -> None:
    write_layout(tmp_path, "aidevhome", context_binaries(context_folder))
    read = load_genie_bundle(tmp_path)
    assert (read.prompt_width, read.contexts) == (32, ())  # an estimate
    sized = with_graph_sizes(read)
    assert (sized.prompt_width, sized.contexts, sized.usable_context) == (8, (128,), 112)


def test_sizes_are_read_from_several_graphs_in_each_binary(published_bundle: Path) -> None:
    sized = with_graph_sizes(load_genie_bundle(published_bundle))
    assert (sized.prompt_width, sized.contexts) == (8, (64, 128))


def test_binary_that_cannot_be_read_changes_nothing(genie_config: Path, caplog: pytest.LogCaptureFixture) -> None:
    read = load_genie_bundle(genie_config)
    gone = replace(read, binaries=(genie_config.with_name("gone.bin"),))
    assert with_graph_sizes(gone) == gone
    assert "the sizes of its graphs are estimated" in caplog.text
