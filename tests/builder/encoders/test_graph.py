"""The graphs of all families of encoders against the vectors that `transformers` gives for small random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.builder.encoders.build import write_encoder_files
from gateway.bundles.encoder.bundle import EncoderBundle, load_encoder_bundle
from gateway.bundles.stamp import Activations
from gateway.worker.decoders.onnx import SessionOptions
from gateway.worker.encoder.model import CpuEncoder, Text
from tests.support.encoders.models import CASES, FIRSTS, TEXTS, write_folder

_VECTORS = json.loads((Path(__file__).parents[2] / "support/encoders/vectors.json").read_text(encoding="utf-8"))
_ALL = [Text(ids, first) for ids, first in zip(TEXTS, FIRSTS, strict=True)]
_EMBEDDINGS = [name for name, (_, pooling, _) in CASES.items() if pooling]

Make = Callable[..., tuple[EncoderBundle, CpuEncoder]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(name: str, activations: Activations) -> tuple[EncoderBundle, CpuEncoder]:
        source = write_folder(tmp_path / "source", name, _VECTORS[name]["shapes"])
        out = tmp_path / activations
        out.mkdir()
        write_encoder_files(source, out, activations, lambda stage, done: None)
        bundle = load_encoder_bundle(out)
        return bundle, CpuEncoder(bundle, SessionOptions(threads=1))

    return make


def reference(name: str) -> NDArray[np.float32]:
    return np.array(_VECTORS[name]["rows"], np.float32)


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return found


@pytest.mark.parametrize("name", CASES)
def test_float_graph_gives_the_reference_in_one_batch_and_alone(name: str, make: Make) -> None:
    _, model = make(name, "float")
    together = model.run(_ALL)
    alone = np.concatenate([model.run([text]) for text in _ALL])
    assert np.abs(together - reference(name)).max() < 2e-4 * max(1.0, float(np.abs(reference(name)).max()))
    assert np.abs(together - alone).max() < 1e-5 * max(1.0, float(np.abs(alone).max()))


@pytest.mark.parametrize("name", _EMBEDDINGS)
def test_int8_graph_is_close_to_the_reference(name: str, make: Make) -> None:
    _, model = make(name, "int8")
    assert cosines(model.run(_ALL), reference(name)).min() > 0.997


def test_int8_rows_do_not_depend_on_the_batch(make: Make) -> None:
    _, model = make("bert-mean", "int8")
    alone = np.concatenate([model.run([text]) for text in _ALL])
    assert np.abs(model.run(_ALL) - alone).max() < 1e-5
