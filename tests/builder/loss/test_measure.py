"""The loss of a bundle against logits of whole graphs, and what the reference computes against formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.builder import build
from gateway.builder.build import CpuTarget, build_bundle
from gateway.builder.graphs.cpu import write_cpu_graph
from gateway.builder.graphs.matrices import Matrices
from gateway.builder.loss.measure import measure_loss, reference_logits, text_ids
from gateway.builder.loss.reference import compute_reference
from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import EMBEDDING, layer
from gateway.bundles.stamp import Loss, read_stamp
from tests.support.architectures.models import reference
from tests.support.session import Array, BareSession
from tests.support.tiny import write_tiny_folder


def _log_probabilities(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _perplexity(logits: Array, ids: Array) -> float:
    following = _log_probabilities(logits)[np.arange(len(ids) - 1), ids[1:]]
    return float(np.exp(-following.mean()))


@pytest.mark.parametrize(
    "options",
    [{"tied": False, "bias": True, "layers": 3}, {"architecture": "mistral", "sliding_window": 128, "context": 256}],
    ids=["untied", "window"],
)
def test_loss_equals_that_of_whole_graphs(tmp_path: Path, options: dict[str, Any]) -> None:
    source = open_source(write_tiny_folder(tmp_path / "source", **options))
    ids = text_ids(source)[:200]
    hidden, importance = compute_reference(source, ids, tmp_path, lambda share: None)
    graph, exact = tmp_path / "model.onnx", tmp_path / "exact.onnx"
    boundaries = write_cpu_graph(Matrices(source, "int4", importance), graph, lambda share: None, "float")
    write_cpu_graph(Matrices(source, "float32"), exact, lambda share: None, "float", "float32")
    loss = measure_loss(source, ids, hidden, graph, boundaries, lambda share: None)
    before, after = (BareSession(path, capacity=256).feed([list(ids)])[0] for path in (exact, graph))
    assert loss.before == pytest.approx(_perplexity(before, ids), rel=1e-3)
    assert loss.after == pytest.approx(_perplexity(after, ids), rel=1e-3)
    assert loss.agreement == pytest.approx(np.mean(before.argmax(-1) == after.argmax(-1)), abs=1e-6)
    assert loss.tokens == len(ids) and 0.3 < loss.agreement < 1


def test_importance_is_the_mean_square_of_each_input(tmp_path: Path) -> None:
    source = open_source(write_tiny_folder(tmp_path / "source"))
    ids = text_ids(source)[:50]
    _, importance = compute_reference(source, ids, tmp_path, lambda share: None)
    x, gain = source.tensor(EMBEDDING)[ids], source.tensor(layer(0, "input_layernorm.weight"))
    normed = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5) * gain
    for part in ("q_proj", "k_proj", "v_proj"):
        found = importance[layer(0, f"self_attn.{part}.weight")]
        np.testing.assert_allclose(found, np.square(normed).mean(0), rtol=1e-3)
    sizes = {name: len(values) for name, values in importance.items()}
    assert len(sizes) == 14 and sizes[layer(1, "mlp.down_proj.weight")] == 128
    assert sizes[layer(1, "self_attn.o_proj.weight")] == sizes[layer(1, "mlp.up_proj.weight")] == 64


def test_build_keeps_the_loss_and_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "SMALLEST_MEASURED", 0)
    stages: dict[str, float] = {}
    target = CpuTarget(precision="int8")
    folder = write_tiny_folder(tmp_path / "source")
    out = build_bundle(folder, tmp_path / "out", progress=stages.__setitem__, target=target)
    stamp = read_stamp(out)
    assert stamp is not None and isinstance(stamp.loss, Loss) and stamp.precision == "int8"
    assert stamp.loss.after == pytest.approx(stamp.loss.before, rel=0.05) and stamp.loss.agreement > 0.8
    assert stages["reading a text in floats"] == stages["measuring the loss"] == 1.0
    names = {path.name for path in out.iterdir()}
    assert names >= {"model.onnx", "model.onnx.data"}
    assert not {name for name in names if "layer" in name or "part" in name}


@pytest.mark.parametrize("name", ["gemma3-six", "phi3.5-long", "smollm3-four", "granite"])
def test_reference_computes_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    """Layers of several kinds: windows, rotary positions of two kinds, none, and of a long context, multipliers."""
    model = reference(name)
    source, ids = open_source(model.write_folder(tmp_path / "source")), np.array(model.ids)
    hidden, _ = compute_reference(source, ids, tmp_path, lambda share: None)
    logits = np.concatenate([block for _, _, block in reference_logits(source, hidden)], axis=-1)
    assert np.abs(logits - model.logits()).max() < 1e-4 * np.abs(model.logits()).max()
