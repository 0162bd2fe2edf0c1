"""Each architecture against `transformers`: small random models, whose logits scripts/architecture_logits.py computed.

The texts are longer than each window and each original context of rotary positions. The weights are on the grid of the
builder's blocks, so the numbers differ only by the arithmetic of the graph.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.builder.graphs.cpu import write_cpu_graph
from gateway.builder.sources.detect import open_source
from tests.support.architectures.cases import CASES
from tests.support.architectures.models import reference
from tests.support.session import BareSession

LIMIT = 1e-4  # also in docs/models.md


def error(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference, in parts of the largest logit."""
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", CASES)
def test_hugging_face_folder_computes_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    """In one pass, and its greedy answer token by token."""
    model = reference(name)
    session, expected = session_of(model.write_folder(tmp_path / "source")), model.logits()
    assert error(session.feed([model.ids])[0], expected) < LIMIT
    session.reset()
    steps = [session.feed([model.prompt])[0, -1], *(session.feed([[token]])[0, -1] for token in model.answer[:-1])]
    assert error(np.stack(steps), expected[len(model.prompt) - 1 :]) < LIMIT
    assert np.stack(steps).argmax(-1).tolist() == model.answer


def session_of(path: Path) -> BareSession:
    """The graph of a source for float activations, with keys and values in single precision."""
    write_cpu_graph(open_source(path), path.parent / "model.onnx", lambda share: None, "float", "float32")
    return BareSession(path.parent / "model.onnx")
