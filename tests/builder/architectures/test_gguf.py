"""Each architecture from a GGUF file: names, order of rows and metadata give the logits of `transformers`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.builder.graphs.cpu import write_cpu_graph
from gateway.builder.sources.detect import open_source
from tests.support.architectures.cases import CASES
from tests.support.architectures.gguf_files import write_gguf
from tests.support.architectures.models import reference
from tests.support.session import BareSession

#: What a GGUF file cannot say: windows of Qwen2, other layers with a window or without rotary positions.
_OTHERS = ("qwen2-window", "gemma3", "smollm3")
NAMES = [name for name in CASES if name not in _OTHERS]


@pytest.mark.parametrize("name", NAMES)
def test_gguf_file_computes_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    model = reference(name)
    source = open_source(write_gguf(model, tmp_path / "m.gguf"))
    write_cpu_graph(source, tmp_path / "model.onnx", lambda share: None, "float")
    logits, expected = BareSession(tmp_path / "model.onnx").feed([model.ids])[0], model.logits()
    assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()
    assert logits[len(model.prompt) - 1 :].argmax(-1).tolist() == model.answer
