"""Sliding windows on the CPU: how a text is divided into calls changes no bit, also far beyond the window.

The cache keeps every row, so a shared prefix can be copied and a draft taken back as in a model without windows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from gateway.builder.build import build_bundle
from gateway.bundles.bundle import load_bundle
from gateway.worker.decoders.cpu import CpuDecoder
from tests.support.architectures.models import reference
from tests.support.tiny import train_tokenizer

_IDS = reference("gemma3").ids[:64]  # of one call; the window is 20


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuDecoder]:
    source = reference("gemma3").write_folder(tmp_path_factory.mktemp("source"))
    (source / "tokenizer.json").write_text(train_tokenizer().to_str(), encoding="utf-8")
    folder = build_bundle(source, tmp_path_factory.mktemp("bundle") / "gemma", progress=lambda *_: None)
    decoder = CpuDecoder(load_bundle(folder), slots=2, context_length=128)
    assert decoder.spec.is_batch_invariant
    yield decoder
    decoder.close()


def test_chunks_steps_drafts_and_copies_give_the_same_bits(decoder: CpuDecoder) -> None:
    one, other = decoder.new_cache(), decoder.new_cache()
    expected = decoder.verify(one, _IDS).copy()
    one.truncate(0)
    chunks = [decoder.verify(one, _IDS[start : start + 7]).copy() for start in range(0, len(_IDS), 7)]
    np.testing.assert_array_equal(np.concatenate(chunks), expected)
    other.copy_from(one, 40)  # a shared prefix
    np.testing.assert_array_equal(decoder.verify(other, _IDS[40:]), expected[40:])
    other.truncate(50)
    decoder.verify(other, [7, 7, 7, 7])  # a draft that is refused
    other.truncate(50)
    one.truncate(55)
    for offset in range(5):
        rows = decoder.step([one, other], [_IDS[55 + offset], _IDS[50 + offset]])
        np.testing.assert_array_equal(rows, expected[[55 + offset, 50 + offset]])
