"""The logits of AI Hub's export, whose last stage is a Cast without a scale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gateway.bundles.static_pipeline import read_pipelines
from gateway.errors import BundleError
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.static import dequantiser
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.dequantiser import find_bare_cast
from gateway.worker.sampling import log_softmax
from tests.support.decoding import IDS, greedy, prefill
from tests.support.npu.fixtures import OpenDecoder
from tests.support.npu.tiny_htp_decoder import LOGITS

SCALE, ZERO_POINT = float(LOGITS.scale), int(LOGITS.zero)


@pytest.fixture
def reference(ai_hub_uncompiled: Path, open_decoder: OpenDecoder) -> StaticDecoder:
    """The same graphs uncompiled on the CPU, with DequantizeLinear."""
    return open_decoder(ai_hub_uncompiled, "cpu")


@pytest.fixture
def unreadable_binaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The System library does not know the binaries' format."""

    def refuse(path: Path) -> None:
        raise BundleError(f"{path.name} was made by a newer QAIRT than this gateway knows.")

    monkeypatch.setattr(dequantiser, "read_binary", refuse)


def log_probabilities(decoder: StaticDecoder) -> Logits:
    return log_softmax(prefill(decoder, decoder.new_cache(), IDS[:10]))


def test_scale_of_context_binary_gives_probabilities_and_tokens(
    ai_hub_exported: Path, reference: StaticDecoder, open_decoder: OpenDecoder
) -> None:
    decoder = open_decoder(ai_hub_exported, "qnn")
    expected, found = log_probabilities(reference), log_probabilities(decoder)
    assert 0.92 < np.exp(expected.max()) < 0.94  # codes in place of logits would give 1.0
    np.testing.assert_allclose(found, expected, atol=0.3)
    assert abs(np.exp(found.max()) - np.exp(expected.max())) < 0.01
    count = decoder.spec.context_length - len(IDS)
    assert greedy(decoder, IDS, count) == greedy(reference, IDS, count)
    assert not decoder.spec.greedy_only


METADATA = {
    "model_files": {"scale": SCALE, "zero_point": ZERO_POINT},
    "components": {"scale": SCALE, "offset": -ZERO_POINT},
}


def write_metadata(folder: Path, key: str, parameters: list[dict[str, Any]]) -> None:
    components = {
        f"part_{index}": {"outputs": {"logits": {"dtype": "uint16", "quantization_parameters": values}}}
        for index, values in enumerate(parameters)
    }
    name = "metadata.json" if key == "model_files" else "metadata.yaml"  # JSON is YAML too
    (folder / name).write_text(json.dumps({key: components}), encoding="utf-8")


@pytest.mark.parametrize("key", METADATA)
@pytest.mark.usefixtures("unreadable_binaries")
def test_scale_of_metadata_is_used_if_binary_cannot_be_read(
    ai_hub_exported: Path, tmp_path: Path, key: str, reference: StaticDecoder, open_decoder: OpenDecoder
) -> None:
    folder = Path(shutil.copytree(ai_hub_exported, tmp_path / "exported"))
    write_metadata(folder, key, [METADATA[key]])
    decoder = open_decoder(folder, "qnn")
    assert not decoder.spec.greedy_only
    np.testing.assert_allclose(log_probabilities(decoder), log_probabilities(reference), atol=0.3)


@pytest.mark.usefixtures("unreadable_binaries")
@pytest.mark.parametrize(
    "parameters",
    [
        [{"scale": SCALE, "zero_point": ZERO_POINT}, {"scale": 2 * SCALE, "zero_point": ZERO_POINT}],
        [{"scale": 0.0, "zero_point": ZERO_POINT}],
        [{"scale": -SCALE, "zero_point": ZERO_POINT}],
        [{"scale": SCALE, "zero_point": 65536}],
        [{"scale": SCALE, "zero_point": -1}],
        [{"scale": "x", "zero_point": 0}],
        [{"scale": SCALE}],
    ],
)
def test_unusable_scale_is_not_used(ai_hub_exported: Path, tmp_path: Path, parameters: list[dict[str, Any]]) -> None:
    folder = Path(shutil.copytree(ai_hub_exported, tmp_path / "exported"))
    write_metadata(folder, "model_files", parameters)
    (pipeline,) = read_pipelines(folder)
    found = find_bare_cast(pipeline)
    assert found is not None and found.dequantiser is None


@pytest.mark.usefixtures("unreadable_binaries")
@pytest.mark.parametrize("content", ["{", "[" * 10_000, "a: 2020-99-99", "\x00", "[]", '{"components": [1]}'])
def test_unreadable_metadata_is_not_used(ai_hub_exported: Path, tmp_path: Path, content: str) -> None:
    folder = Path(shutil.copytree(ai_hub_exported, tmp_path / "exported"))
    for name in ("metadata.json", "metadata.yaml"):
        (folder / name).write_text(content, encoding="utf-8")
    (pipeline,) = read_pipelines(folder)
    found = find_bare_cast(pipeline)
    assert found is not None and found.dequantiser is None


@pytest.mark.usefixtures("unreadable_binaries")
def test_model_without_scale_generates_greedily_only(
    ai_hub_exported: Path, reference: StaticDecoder, open_decoder: OpenDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = open_decoder(ai_hub_exported, "qnn")
    assert decoder.spec.greedy_only
    assert greedy(decoder, IDS, 40) == greedy(reference, IDS, 40)
    assert "the scale of its logits is unknown" in caplog.text
    assert "made by a newer QAIRT" in caplog.text
