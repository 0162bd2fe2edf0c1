"""Pipelines of graphs of fixed shape, as genai_config.json describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.static_pipeline import CacheTensor, read_pipelines, runs_on_npu
from gateway.errors import BundleError


def write(folder: Path, *, context: int = 64, window: Any = None, stages: Any = None) -> Path:
    npu = {"session_options": {"provider_options": [{"QNN": {"htp_performance_mode": "burst"}}]}}
    decoder = {
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "head_size": 16,
        "inputs": {"past_key_names": "past_keys_%d", "past_value_names": "past_values_%d"},
        "outputs": {"present_key_names": "present_keys_%d", "present_value_names": "present_values_%d"},
        "sliding_window": {"window_size": 8, "slide_key_value_cache": False} if window is None else window,
        "pipeline": [{"a": {"filename": "a.onnx"}}, {"b": {"filename": "b.onnx"} | npu}] if stages is None else stages,
    }
    model = {"type": "decoder-pipeline", "vocab_size": 10, "context_length": context, "decoder": decoder}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "genai_config.json").write_text(json.dumps({"model": model | {"eos_token_id": [7, 8]}}), encoding="utf-8")
    return folder


def test_in_place_cache_has_rows_in_axis_2(tmp_path: Path) -> None:
    (pipeline,) = read_pipelines(write(tmp_path))
    assert pipeline.in_place and pipeline.pad_id == 7
    assert [runs_on_npu(stage) for stage in pipeline.stages] == [False, True]
    assert list(pipeline.cache_tensors())[:2] == [
        CacheTensor("past_keys_0", "present_keys_0", 2),
        CacheTensor("past_values_0", "present_values_0", 2),
    ]


def test_sliding_cache_has_key_rows_in_axis_3(tmp_path: Path) -> None:
    (pipeline,) = read_pipelines(write(tmp_path, window={"window_size": 8, "pad_value": 128}))
    assert not pipeline.in_place and pipeline.window.pad_value == 128
    assert [tensor.axis for tensor in pipeline.cache_tensors()] == [3, 2, 3, 2]


def test_pipelines_are_sorted_by_context_and_share_files(tmp_path: Path) -> None:
    write(tmp_path, context=256)
    write(tmp_path / "context-64", context=64, stages=[{"a": {"filename": "../a.onnx"}}])
    shorter, longer = read_pipelines(tmp_path)
    assert (shorter.config.context_length, longer.config.context_length) == (64, 256)
    assert shorter.file(shorter.stages[0]) == longer.file(longer.stages[0])


def test_pipelines_of_different_widths_are_refused(tmp_path: Path) -> None:
    write(tmp_path, context=256)
    write(tmp_path / "context-64", window={"window_size": 16})
    with pytest.raises(BundleError, match="windows of different widths"):
        read_pipelines(tmp_path)


def test_bundle_without_sliding_window_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    content = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
    del content["model"]["decoder"]["sliding_window"]
    (folder / "genai_config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match="no pipeline with a sliding window"):
        read_pipelines(folder)


@pytest.mark.parametrize(
    ("model_rows", "configured", "expected"), [(512, 0, 512), (32768, 0, 4096), (32768, 8192, 8192), (512, 8192, 512)]
)
def test_open_rows_are_those_of_configuration_or_4096(
    tmp_path: Path, model_rows: int, configured: int, expected: int
) -> None:
    (pipeline,) = read_pipelines(write(tmp_path, context=model_rows), configured)
    assert pipeline.open_rows == expected
