"""The CPU decoder over a tiny model and a real one is batch-invariant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import pytest

from gateway.bundles.bundle import load_bundle
from gateway.errors import BundleError, EngineFailed
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.decoders.cpu_cache import SlotCache
from gateway.worker.decoders.onnx import SessionOptions
from tests.support.token_loop_fixtures import random_ids

#: (logits, expected) -> None
Compare = Callable[[np.ndarray, np.ndarray], None]


@pytest.fixture(scope="module", params=["tiny", "tiny-2", "tiny-4", "smollm2_int8"])
def decoder(request: pytest.FixtureRequest) -> Iterator[CpuDecoder]:
    """With the `row_multiple` that it found, or with a larger one, as on another machine."""
    model, _, multiple = request.param.partition("-")
    decoder = CpuDecoder(load_bundle(request.getfixturevalue(model)), slots=4, context_length=256)
    decoder.row_multiple = max(decoder.row_multiple, int(multiple or 1))
    yield decoder
    decoder.close()


@pytest.fixture
def same(decoder: CpuDecoder) -> Compare:
    """Asserts identical bits if the decoder promises them. Else an int8 grid can amplify the last bits."""
    tolerance = 0.0 if decoder.spec.is_batch_invariant else 2.0
    return lambda logits, expected: np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)


_made: WeakKeyDictionary[CpuDecoder, list[SlotCache]] = WeakKeyDictionary()


def caches(decoder: CpuDecoder, count: int = 4) -> list[SlotCache]:
    """Its first caches, with no rows. Tests use the same ones, so that their memory has rows of other tests."""
    made = _made.setdefault(decoder, [])
    made += [decoder.new_cache() for _ in range(len(made), count)]
    for cache in made:
        cache.truncate(0)
    return made[:count]


def filled(decoder: CpuDecoder) -> list[SlotCache]:
    """Its first four caches, with 10, 17, 24 and 31 rows."""
    slots = caches(decoder)
    for index, slot in enumerate(slots):
        decoder.prefill(slot, random_ids(10 + 7 * index, index))
    return slots


def test_spec_describes_graph(decoder: CpuDecoder) -> None:
    assert decoder.spec.context_length == 256
    assert decoder.spec.vocab_size in (384, 49152)
    assert decoder.spec.device == "cpu"
    assert set(decoder.spec.placement) == {"CPU"}


@pytest.mark.parametrize("chunks", [(2, 38), (38, 2), (13, 14, 13), (20, 20), (2,) * 20], ids=str)
def test_chunked_prefill_gives_same_logits(decoder: CpuDecoder, same: Compare, chunks: tuple[int, ...]) -> None:
    ids = random_ids(40, 1)
    whole, cut, *_ = caches(decoder)
    expected = decoder.prefill(whole, ids).copy()
    start = 0
    for size in chunks:
        logits = decoder.prefill(cut, ids[start : start + size])
        start += size
    assert cut.length == whole.length == 40
    same(logits, expected)


def test_prefill_after_truncate_gives_same_logits(decoder: CpuDecoder, same: Compare) -> None:
    ids = random_ids(40, 1)
    fresh, used, *_ = caches(decoder)
    expected = decoder.prefill(fresh, ids).copy()
    decoder.prefill(used, ids[:20] + random_ids(40, 2))
    used.truncate(20)
    same(decoder.prefill(used, ids[20:]), expected)


def test_verify_gives_logits_after_each_id(decoder: CpuDecoder, same: Compare) -> None:
    ids = random_ids(12, 3)
    one, other, *_ = caches(decoder)
    rows = decoder.verify(one, ids).copy()
    assert rows.shape == (12, decoder.spec.vocab_size)
    for size in range(2, 13):
        other.truncate(0)
        same(decoder.prefill(other, ids[:size]), rows[size - 1])


@pytest.mark.parametrize("members", [(0, 1), (1, 2, 3), (3, 0), (2, 0), (0, 1, 2, 3), (3, 1, 0), (0, 2, 3)], ids=str)
def test_batched_step_gives_same_logits_as_single_step(
    decoder: CpuDecoder, same: Compare, members: tuple[int, ...]
) -> None:
    """Sequences of different lengths, adjacent or not, in any order. The other slots do not change."""
    slots = filled(decoder)
    steps, continuations = [], []
    for index, slot in enumerate(slots):
        before = slot.length
        if index in members:
            steps.append((index, decoder.step([slot], [50 + index])[0].copy()))
        continuations.append(decoder.prefill(slot, [5, 6]).copy())
        slot.truncate(before)
    batched = decoder.step([slots[index] for index in members], [50 + index for index in members])
    for index, alone in steps:
        same(batched[members.index(index)], alone)
    for index, slot in enumerate(slots):
        assert slot.length == 10 + 7 * index + (index in members)
        same(decoder.prefill(slot, [5, 6]), continuations[index])


@pytest.mark.parametrize("members", [(0, 1), (1, 2, 3), (3, 0), (2, 0, 1)], ids=str)
def test_prompts_in_one_call_give_same_logits_as_alone(
    decoder: CpuDecoder, same: Compare, members: tuple[int, ...]
) -> None:
    """Adjacent or not, in any order. The other slots do not change."""
    slots = filled(decoder)
    prompts = [random_ids(9, 20 + index) for index in members]
    alone = []
    for index, prompt in zip(members, prompts, strict=True):
        alone.append(decoder.prefill(slots[index], prompt).copy())
        slots[index].truncate(10 + 7 * index)
    together = decoder.prefill_together([slots[index] for index in members], prompts)
    same(together, np.stack(alone))
    assert [slot.length for slot in slots] == [10 + 7 * index + 9 * (index in members) for index in range(4)]


def test_batched_step_leaves_full_slot_between_members_unchanged(decoder: CpuDecoder, same: Compare) -> None:
    first, full, last, _ = caches(decoder)
    decoder.prefill(first, [5, 6])
    decoder.prefill(last, [5, 6])
    ids = random_ids(256, 1)
    for start in range(0, 256, 64):
        expected = decoder.prefill(full, ids[start : start + 64]).copy()
    decoder.step([first, last], [7, 7])
    full.truncate(254)
    same(decoder.prefill(full, ids[-2:]), expected)


def test_steps_give_same_logits_as_verify(decoder: CpuDecoder, same: Compare) -> None:
    ids = random_ids(40, 4)
    one, many, *_ = caches(decoder)
    decoder.prefill(one, ids[:30])
    decoder.prefill(many, ids[:30])
    rows = decoder.verify(many, ids[30:]).copy()
    for token, row in zip(ids[30:], rows, strict=True):
        same(decoder.step([one], [token])[0], row)


def test_float_activations_differ_only_in_last_bits(smollm2: Path) -> None:
    """A prompt in one call, in single steps, and in batched steps."""
    decoder = CpuDecoder(load_bundle(smollm2), slots=2, context_length=256)
    one, other = caches(decoder, 2)
    ids = random_ids(40, 4)
    rows = decoder.verify(one, ids).copy()
    one.truncate(0)
    for position, token in enumerate(ids):
        (alone,) = decoder.step([one], [token]).copy()
        one.truncate(position)
        together = decoder.step([one, other], [token, token])[0]
        for logits in (alone, together):
            assert logits.argmax() == rows[position].argmax()
            assert np.abs(logits - rows[position]).max() < 5e-3
    decoder.close()


def test_copied_cache_gives_same_logits(decoder: CpuDecoder, same: Compare) -> None:
    original, copy, *_ = caches(decoder)
    decoder.prefill(original, random_ids(30, 5))
    copy.copy_from(original, 20)
    original.truncate(20)
    expected = decoder.prefill(original, [8, 9]).copy()
    same(decoder.prefill(copy, [8, 9]), expected)


def test_broken_graph_is_bundle_error_with_file_name(tiny: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny)
    for name in ("model.onnx.data", "genai_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    broken = type(bundle)(
        folder=tmp_path,
        config=bundle.config,
        tokenizer_path=bundle.tokenizer_path,
        tokenizer_config={},
        chat_template=None,
    )
    with pytest.raises(BundleError, match=r"model\.onnx cannot be loaded"):
        CpuDecoder(broken, slots=1)


def test_failing_call_raises_engine_failed(tiny: Path) -> None:
    decoder = CpuDecoder(load_bundle(tiny), slots=1, options=SessionOptions(threads=1))
    with pytest.raises(EngineFailed, match="failed while it ran"):
        decoder.prefill(decoder.new_cache(), [])
