"""Bundles of the architectures in the product's decoder: logits beyond the windows, and bits that no batch changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.builder.build import CpuTarget, build_bundle
from gateway.bundles.bundle import load_bundle
from gateway.bundles.stamp import Activations
from gateway.worker.decoders.cpu import CpuDecoder
from tests.builder.architectures.test_logits import error
from tests.support.architectures.models import reference
from tests.support.tiny import train_tokenizer

LIMIT = 0.02  # also in docs/models.md; keys and values in half precision, measured 0.004 to 0.008
_PIECE = 29  # tokens, less than a decoder computes at once
_NAMES = ("mistral-window", "gemma3", "phi4-mini", "olmo2")


@pytest.fixture(scope="module")
def tokenizer() -> str:
    return train_tokenizer().to_str()


def decoder_of(name: str, folder: Path, tokenizer: str, activations: Activations) -> CpuDecoder:
    source = reference(name).write_folder(folder / "source")
    (source / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
    target = CpuTarget(activations=activations)
    bundle = build_bundle(source, folder / "bundle", progress=lambda *_: None, target=target)
    return CpuDecoder(load_bundle(bundle), slots=2, context_length=128)


@pytest.mark.parametrize("name", _NAMES)
def test_decoder_computes_the_logits_of_transformers(tmp_path: Path, tokenizer: str, name: str) -> None:
    """Its mask is wider than the sequence."""
    model, decoder = reference(name), decoder_of(name, tmp_path, tokenizer, "float")
    decoder.verify(decoder.new_cache(), [5, 6, 7])  # the model's cache is the second slot
    cache = decoder.new_cache()
    pieces = [model.ids[start : start + _PIECE] for start in range(0, len(model.ids), _PIECE)]
    logits = np.concatenate([decoder.verify(cache, piece).copy() for piece in pieces])
    assert error(logits, model.logits()) < LIMIT
    decoder.close()


def test_no_bit_depends_on_the_batch(tmp_path: Path, tokenizer: str) -> None:
    """On each processor as for Llama: the decoder finds it out."""
    decoders = [decoder_of(name, tmp_path / name, tokenizer, "int8") for name in ("llama", *_NAMES)]
    expected, *found = [(decoder.spec.is_batch_invariant, decoder.row_multiple) for decoder in decoders]
    assert found == [expected] * len(_NAMES)
    for decoder in decoders:
        decoder.close()
