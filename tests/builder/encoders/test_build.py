"""The bundle of a real encoder, all-MiniLM-L6-v2, against the vectors that sentence-transformers' recipe gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.builder.build import CpuTarget, build_bundle
from gateway.bundles.encoder.bundle import load_encoder_bundle
from gateway.bundles.hashes import check_hashes
from gateway.bundles.stamp import Activations, read_stamp
from gateway.prompts.embedding import encode_inputs
from gateway.prompts.messages import EncodeInputs
from gateway.text.tokens import TextTokenizer
from gateway.worker.decoders.onnx import SessionOptions
from gateway.worker.encoder.model import CpuEncoder, Text

_RECORDED = json.loads((Path(__file__).parents[2] / "support/encoders/minilm.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("activations", "cosine"), [("float", 0.9999), ("int8", 0.999)])
def test_minilm_gives_the_recorded_vectors(
    activations: Activations, cosine: float, minilm_source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "minilm"
    build_bundle(minilm_source, out, progress=lambda what, share: None, target=CpuTarget(activations))
    bundle, stamp = load_encoder_bundle(out), read_stamp(out)
    assert stamp is not None and check_hashes(out) == []
    assert (bundle.info.longest, bundle.info.dimensions, bundle.info.pooling) == (256, 384, "mean")
    request = EncodeInputs(texts=list(_RECORDED), longest=bundle.info.longest, truncate=True)
    encoded = encode_inputs(TextTokenizer.load(bundle.tokenizer_path), request)
    assert [len(ids) for ids in encoded.ids] == [recorded[0] for recorded in _RECORDED.values()]
    rows = CpuEncoder(bundle, SessionOptions(threads=1)).run([Text(ids) for ids in encoded.ids])
    expected: NDArray[np.float64] = np.array([recorded[1:] for recorded in _RECORDED.values()])
    assert (rows * expected).sum(1).min() > cosine
