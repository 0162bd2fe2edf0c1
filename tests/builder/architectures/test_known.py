"""A tensor that the graph would not use is refused, in both file formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gateway.builder.sources.detect import open_source
from gateway.errors import BundleError
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import write_tiny_gguf

_REFUSED = (
    "self_attn.q_norm.weight",  # Llama has no norms of queries
    "self_attn.sinks",
    "mlp.experts.0.up_proj.weight",
    "input_layernorm.bias",
)


def folder_with(path: Path, name: str) -> Path:
    folder = write_tiny_folder(path / "m")
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {name: np.ones(64, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", [*(f"model.layers.1.{part}" for part in _REFUSED), "lm_head.bias", "model.norm.bias"])
def test_tensor_that_no_graph_uses_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="of architecture llama does not have") as caught:
        open_source(folder_with(tmp_path, name))
    assert f"m has the tensor {name}, which" in caught.value.message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.rotary_emb.inv_freq",  # of old folders
        "model.layers.2.mlp.experts.0.up_proj.weight",  # beyond the layers, for training
        "vision_tower.layers.0.weight",
    ],
)
def test_tensor_that_changes_no_answer_is_ignored(tmp_path: Path, name: str) -> None:
    assert open_source(folder_with(tmp_path, name)).config.layers == 2


@pytest.mark.parametrize("name", ["blk.0.attn_q_norm.weight", "blk.1.ffn_gate_inp.weight", "output.bias"])
def test_tensor_of_a_gguf_file_is_refused(tmp_path: Path, name: str) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", extra_tensors={name: np.ones(64, np.float32)})
    with pytest.raises(BundleError, match=f"has the tensor {name}, which"):
        open_source(path)
