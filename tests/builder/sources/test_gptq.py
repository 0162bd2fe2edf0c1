"""GPTQ and AWQ folders: the weights are those of the libraries that made the formats (scripts/packed_weights.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gateway.builder.graphs.cpu import write_cpu_graph
from gateway.builder.graphs.matrices import Matrices
from gateway.builder.sources.detect import open_source
from gateway.errors import BundleError
from tests.support.session import BareSession
from tests.support.tiny import write_tiny_folder

_CASES = dict(np.load(Path(__file__).parent / "data" / "packed.npz"))
_NAMES = sorted({name.partition("/")[0] for name in _CASES})
_DOWN = "model.layers.0.mlp.down_proj"


@pytest.mark.parametrize("case", _NAMES)
def test_weights_equal_those_of_the_library(tmp_path: Path, case: str) -> None:
    source = open_source(_write(tmp_path, case))
    blocks = source.blocks(f"{_DOWN}.weight")
    assert blocks is not None and blocks.bits == int(case.split("-")[1])
    np.testing.assert_array_equal(blocks.values(), _CASES[f"{case}/values"])
    np.testing.assert_array_equal(source.tensor(f"{_DOWN}.weight"), _CASES[f"{case}/values"])
    assert source.has(f"{_DOWN}.weight") and source.blocks("model.layers.1.mlp.down_proj.weight") is None


@pytest.mark.parametrize("case", ["gptq-4-32", "gptq-4-128", "gptq-8-32", "awq-4-32"])
def test_graph_computes_with_these_weights(tmp_path: Path, case: str) -> None:
    """The others are float16 in both graphs."""
    logits = []
    for folder in (_write(tmp_path / "packed", case), _write(tmp_path / "floats", case, packed=False)):
        write_cpu_graph(
            Matrices(open_source(folder), "float16"), folder / "model.onnx", lambda share: None, "float", "float32"
        )
        logits.append(BareSession(folder / "model.onnx").feed([[1, 75, 300, 2, 9]])[0])
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-2 if "-8-" in case else 1e-2)


def test_zero_is_stored_as_it_is_in_the_second_format(tmp_path: Path) -> None:
    case = "gptq-4-32"
    blocks = open_source(_write(tmp_path, case, checkpoint_format="gptq_v2")).blocks(f"{_DOWN}.weight")
    assert blocks is not None
    step = np.repeat(_CASES[f"{case}/scales"].T.astype(np.float32), 32, axis=1)
    np.testing.assert_allclose(blocks.values() - _CASES[f"{case}/values"], step, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "compressed-tensors"}, "quantised by 'compressed-tensors' cannot be read. Use the model's"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes' cannot be read"),
        ({"quant_method": "fp8"}, "'fp8' cannot be read"),
        ({"quant_method": "mxfp4"}, "'mxfp4' cannot be read"),
        ({"quant_method": ["gptq"]}, r"quantised by .* cannot be read"),
        ({"bits": 3}, "GPTQ weights with 3 bits cannot be read. Use"),
        ({"group_size": 24}, "GPTQ weights with groups of 24"),
        ({"group_size": "many"}, "quantization_config in config.json is wrong"),
        ({"checkpoint_format": "marlin"}, "GPTQ weights with the format 'marlin'"),
        ({"dynamic": {"+:.*down.*": {"bits": 8}}}, "GPTQ weights with other settings for some layers"),
        ({"quant_method": "awq", "version": "gemv"}, "AWQ weights with the version 'gemv'"),
        ({"quant_method": "awq", "zero_point": False}, "AWQ weights with no zeros"),
    ],
    ids=str,
)
def test_other_quantisation_is_refused_with_the_next_step(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(BundleError, match=words):
        open_source(_write(tmp_path, "gptq-4-32", **settings))


def test_groups_in_the_order_of_the_activations_are_refused(tmp_path: Path) -> None:
    groups = _CASES["gptq-4-32/g_idx"][::-1].copy()
    source = open_source(_write(tmp_path, "gptq-4-32", {"g_idx": groups}))
    with pytest.raises(BundleError, match=r"down_proj has its groups in the order .* `desc_act` false"):
        source.blocks(f"{_DOWN}.weight")


def test_missing_part_is_named(tmp_path: Path) -> None:
    folder = _write(tmp_path, "gptq-4-32")
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{_DOWN}.qzeros"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BundleError, match=r"lacks model\.layers\.0\.mlp\.down_proj\.qzeros"):
        open_source(folder).blocks(f"{_DOWN}.weight")


@pytest.mark.parametrize("case", ["gptq-4-32", "awq-4-32"])
@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("change", ["empty", "half", "flat"])
def test_part_of_another_size_is_one_sentence(tmp_path: Path, case: str, part: str, change: str) -> None:
    values = _CASES[f"{case}/{part}"]
    size = {"empty": 0, "half": len(values) // 2, "flat": len(values)}[change]
    changed = values.reshape(-1) if change == "flat" else values[:size]
    folder = _write(tmp_path, case, {part: changed.copy()})
    with pytest.raises(BundleError, match=r"down_proj(\.weight)? (is damaged: the sizes|has 64 x (0|64) numbers)"):
        open_source(folder).blocks(f"{_DOWN}.weight")


def test_integers_of_another_type_are_one_sentence(tmp_path: Path) -> None:
    folder = _write(tmp_path, "gptq-4-32", {"qweight": _CASES["gptq-4-32/qweight"].astype(np.int64)})
    with pytest.raises(BundleError, match="down_proj is damaged: the sizes or types"):
        open_source(folder).blocks(f"{_DOWN}.weight")


def test_quantisation_that_is_no_object_is_one_sentence(tmp_path: Path) -> None:
    folder = _write(tmp_path, "gptq-4-32")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": ["gptq"]}), encoding="utf-8")
    with pytest.raises(BundleError, match=r"quantization_config in config\.json is wrong: it is no object"):
        open_source(folder)


def _write(
    folder: Path, case: str, parts: dict[str, NDArray[Any]] | None = None, *, packed: bool = True, **settings: Any
) -> Path:
    """A tiny model with the matrix of the case, packed or in floating point."""
    write_tiny_folder(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{_DOWN}.weight"]
    if packed:
        found = {name: _CASES[f"{case}/{name}"] for name in ("qweight", "qzeros", "scales")} | (parts or {})
        tensors |= {f"{_DOWN}.{name}": values for name, values in found.items()}
        method, bits, group = case.split("-")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stated = {"quant_method": method, "bits": int(bits), "group_size": int(group)} | settings
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stated}), encoding="utf-8")
    else:
        tensors[f"{_DOWN}.weight"] = _CASES[f"{case}/values"]
    save_file(tensors, folder / "model.safetensors")
    return folder
