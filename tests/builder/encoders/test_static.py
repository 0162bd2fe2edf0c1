"""The graphs for the NPU on the CPU, against the vectors that `transformers` gives for small random models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from gateway.builder.encoders.build import write_encoder_files
from gateway.bundles.encoder.bundle import load_encoder_bundle, static_file
from gateway.worker.encoder.model import Text
from gateway.worker.encoder.npu import static_inputs
from tests.support.encoders.models import CASES, FIRSTS, TEXTS, write_folder
from tests.support.encoders.workers import VECTORS

_CPU_ONLY = {"bert-max", "qwen3"}


@pytest.mark.parametrize("name", CASES)
def test_static_graph_gives_the_reference(name: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", name, VECTORS[name]["shapes"])
    write_encoder_files(source, tmp_path, "float", lambda stage, share: None, for_npu=True)
    info = load_encoder_bundle(tmp_path).info
    assert bool(info.lengths) == (name not in _CPU_ONLY)
    for length in info.lengths:
        path = tmp_path / static_file(length)
        assert {node.domain for node in onnx.load(path, load_external_data=False).graph.node} == {""}
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        texts = [Text(ids, first) for ids, first in zip(TEXTS, FIRSTS, strict=True)]
        rows = [session.run(None, static_inputs(text, length, info))[0].reshape(-1) for text in texts]
        assert np.abs(np.array(rows) - np.array(VECTORS[name]["rows"])).max() < 1e-5
