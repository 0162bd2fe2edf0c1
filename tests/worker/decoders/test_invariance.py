"""The check of batch invariance, with the code paths of several processors and with real graphs.

Real kernels of ARM and AVX2 run in scripts/arm64.py and on those machines. Here a model of a device computes the rows
of their code paths a little differently.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from gateway.bundles.bundle import load_bundle
from gateway.worker.decoders import cpu
from gateway.worker.decoders.base import DecoderSpec, KVCache, Logits
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.decoders.invariance import is_batch_invariant
from tests.support.tiny import build_tiny
from tests.support.token_loop_fixtures import random_ids

#: (row of the call, rows of the call, keys of the sequence after the call, position) -> True: another code path
CodePath = Callable[[int, int, int, int], bool]

CAUSES: dict[str, CodePath] = {
    "one row": lambda row, rows, keys, position: rows == 1,
    "rows beyond the last whole four": lambda row, rows, keys, position: row >= rows // 4 * 4,
    "keys beyond the last whole four": lambda row, rows, keys, position: position >= keys // 4 * 4,
    "an odd last row": lambda row, rows, keys, position: rows % 2 == 1 and row == rows - 1,
    "rows beyond the last whole three": lambda row, rows, keys, position: row >= rows // 3 * 3,
    "a block of queries with one row": lambda row, rows, keys, position: row == 32 and rows == 33,
}


class _Rows(KVCache):
    """A cache without data."""

    length = 0

    def truncate(self, length: int) -> None:
        self.length = length

    def copy_from(self, other: KVCache, length: int) -> None:
        self.length = length


class _Device:
    """Logits that depend on the position, and in a last bit on the code path. Each call has its rows counted."""

    def __init__(
        self,
        path: CodePath,
        batch_path: Callable[[int], bool] = lambda slots: False,
        shared_path: Callable[[int], bool] | None = None,
    ) -> None:
        self._path, self._batch_path = path, batch_path
        self._shared_path = shared_path
        self.calls: list[int] = []
        shared = 64 if shared_path else 0
        self.spec = DecoderSpec(
            vocab_size=50, context_length=256, prompt_width=64, device="cpu", shared_prompt_rows=shared
        )

    def prefill(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        logits: Logits = self.verify(cache, ids)[-1]
        return logits

    def verify(self, cache: KVCache, ids: Sequence[int]) -> Logits:
        self.calls.append(len(ids))
        start, rows = cache.length, len(ids)
        cache.truncate(start + rows)
        return np.stack(
            [self._row(start + row, self._path(row, rows, start + rows, start + row)) for row in range(rows)]
        )

    def step(self, caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
        self.calls.append(len(ids))
        return np.stack([self._row(cache.length, self._batch_path(len(caches))) for cache in caches])

    def prefill_together(self, caches: Sequence[KVCache], ids: Sequence[Sequence[int]]) -> Logits:
        assert self._shared_path
        width = len(ids[0])
        self.calls.append(len(ids) * width)
        return np.stack([self._row(cache.length + width - 1, self._shared_path(width)) for cache in caches])

    def _row(self, position: int, other_path: bool) -> Logits:
        row = np.full(50, 1 + position, np.float32)
        return np.nextafter(row, np.float32(np.inf)) if other_path else row


def check(device: _Device, block: int = 64) -> bool:
    return is_batch_invariant(device, [_Rows(), _Rows()], block)  # type: ignore[arg-type,abstract]


def test_device_with_one_code_path_is_batch_invariant_after_29_rows() -> None:
    device = _Device(lambda *_: False)
    assert check(device)
    assert (len(device.calls), sum(device.calls)) == (6, 29)


@pytest.mark.parametrize("cause", CAUSES)
def test_each_known_cause_is_detected(cause: str) -> None:
    assert not check(_Device(CAUSES[cause]), block=32)


def test_other_code_path_for_a_batch_is_detected() -> None:
    assert not check(_Device(lambda *_: False, lambda slots: slots > 1))


def test_other_code_path_for_shared_prompts_is_detected() -> None:
    device = _Device(lambda *_: False, shared_path=lambda width: False)
    assert check(device)
    assert (len(device.calls), sum(device.calls)) == (7, 37)
    assert not check(_Device(lambda *_: False, shared_path=lambda width: width > 1))


def test_caches_are_empty_after_check(tiny: Path) -> None:
    decoder = CpuDecoder(load_bundle(tiny), slots=2)
    assert [decoder.new_cache().length for _ in range(2)] == [0, 0]
    decoder.close()


def test_context_too_short_for_the_check_is_not_called_batch_invariant(tiny: Path) -> None:
    decoder = CpuDecoder(load_bundle(tiny), slots=1, context_length=4)
    assert not decoder.spec.is_batch_invariant
    decoder.prefill(decoder.new_cache(), [1, 2, 3, 4])
    decoder.close()


@pytest.mark.parametrize("needed", [1, 2, 4])
def test_first_multiple_that_is_batch_invariant_is_used(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, needed: int
) -> None:
    def answer(decoder: CpuDecoder, *_: object) -> bool:
        return decoder.row_multiple == needed

    monkeypatch.setattr(cpu, "is_batch_invariant", answer)
    decoder = CpuDecoder(load_bundle(tiny), slots=2)
    assert (decoder.row_multiple, decoder.spec.is_batch_invariant) == (needed, True)
    decoder.close()


def test_without_a_multiple_that_helps_no_padding_row_is_added(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "is_batch_invariant", lambda *_: False)
    decoder = CpuDecoder(load_bundle(tiny), slots=2)
    assert (decoder.row_multiple, decoder.spec.is_batch_invariant) == (1, False)
    decoder.close()


def test_float_bundle_gets_no_padding_rows(smollm2: Path) -> None:
    """Its kernels differ on every machine that was measured, and rows are expensive."""
    decoder = CpuDecoder(load_bundle(smollm2), slots=2, context_length=64)
    assert (decoder.row_multiple, decoder.spec.is_batch_invariant) == (1, False)
    decoder.close()


@pytest.mark.parametrize("multiple", [2, 4])
@pytest.mark.parametrize("context_length", [62, 63, 64, 65])
def test_padding_rows_change_no_bit_up_to_the_end_of_the_context(
    tiny: Path, multiple: int, context_length: int
) -> None:
    """Where the decoder is batch-invariant without them."""
    decoder = CpuDecoder(load_bundle(tiny), slots=2, context_length=context_length)
    if decoder.row_multiple != 1 or not decoder.spec.is_batch_invariant:
        pytest.skip("this machine needs padding rows")
    plain, padded = decoder.new_cache(), decoder.new_cache()
    ids = random_ids(context_length, 1)
    expected = np.concatenate([decoder.verify(plain, ids[:50]).copy(), decoder.verify(plain, ids[50:]).copy()])
    decoder.row_multiple = multiple
    rows = [decoder.verify(padded, ids[:33]).copy()]
    rows += [decoder.step([padded], [token]).copy() for token in ids[33:]]
    np.testing.assert_array_equal(np.concatenate(rows), expected)
    decoder.close()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("size", [3, 30, 33, 61])
def test_every_cut_gives_the_same_bits(tmp_path: Path, tied: bool, size: int) -> None:
    """The tiny model's attention computes queries in blocks of 32, so the last row of 33 is alone."""
    decoder = CpuDecoder(load_bundle(build_tiny(tmp_path, tied=tied)), slots=2)
    if not decoder.spec.is_batch_invariant:
        pytest.skip("no row multiple makes this machine batch-invariant")
    whole, cut = decoder.new_cache(), decoder.new_cache()
    ids = random_ids(64, 1)
    expected = decoder.verify(whole, ids).copy()
    np.testing.assert_array_equal(decoder.verify(cut, ids[:size]), expected[:size])
    np.testing.assert_array_equal(decoder.prefill(cut, ids[size:]), expected[-1])
    decoder.close()
