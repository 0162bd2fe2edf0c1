"""Steps of several sequences in one call: each gets what it would get alone, whatever the others do meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from gateway.builder.build import build_bundle
from gateway.builder.npu.build import NpuTarget
from gateway.errors import BundleError, EngineFailed
from gateway.qnn.device import NpuDevice
from gateway.worker.decoders.base import KVCache, Logits
from gateway.worker.decoders.static import batch as static_batch
from gateway.worker.decoders.static import open as static_open
from gateway.worker.decoders.static.cache import Buffer
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.decoders.static.open import open_static_decoder
from gateway.worker.frames import FromWorker, Submit, Tokens
from gateway.worker.token_loop import TokenLoop
from tests.support.npu_fixtures import OpenDecoder
from tests.support.tiny import write_tiny_folder
from tests.support.token_loop_fixtures import GREEDY, no_grammar
from tests.worker.decoders.static.test_static_decoder import IDS, prefill

SIZE = 4
WIDTH = 8
CONTEXT = 128  # and one of 64


class Both:
    """The same sequences in two decoders: `together` lets them share calls, `alone` does not."""

    def __init__(self, together: StaticDecoder, alone: StaticDecoder, sequences: int) -> None:
        self.together, self.alone = together, alone
        self.ours = [together.new_cache() for _ in range(sequences)]
        self.theirs = [alone.new_cache() for _ in range(sequences)]
        self.shared: list[int] = []  # sequences that took part in each shared call
        for batch in together._batches:
            batch.step = self._noted(batch.step)  # type: ignore[method-assign]

    def _noted(self, step: Callable[..., Logits]) -> Callable[..., Logits]:
        def noted(caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
            self.shared.append(len(ids))
            return step(caches, ids)

        return noted

    def step(self, places: Sequence[int], ids: Sequence[int]) -> None:
        logits = self.together.step([self.ours[place] for place in places], ids)
        for row, place, token in zip(logits, places, ids, strict=True):
            _assert_same(row, self.alone.step([self.theirs[place]], [token])[0])

    def prefill(self, place: int, ids: Sequence[int]) -> None:
        ours = prefill(self.together, self.ours[place], ids, WIDTH)
        _assert_same(ours, prefill(self.alone, self.theirs[place], ids, WIDTH))

    def truncate(self, place: int, length: int) -> None:
        for caches in (self.ours, self.theirs):
            caches[place].truncate(length)

    def copy(self, place: int, donor: int, length: int) -> None:
        for caches in (self.ours, self.theirs):
            caches[place].copy_from(caches[donor], length)

    def room(self, place: int) -> int:
        return CONTEXT - self.ours[place].length


def _assert_same(ours: Logits, theirs: Logits) -> None:
    np.testing.assert_allclose(ours, theirs, atol=0.05)


@pytest.fixture
def together(npu_bundle: Path, open_decoder: OpenDecoder) -> StaticDecoder:
    decoder = open_decoder(npu_bundle, "qnn", sequences=SIZE)
    assert decoder.batch_size == SIZE and decoder.spec.context_length == CONTEXT
    return decoder


@pytest.fixture
def alone(npu_bundle: Path, open_decoder: OpenDecoder) -> StaticDecoder:
    decoder = open_decoder(npu_bundle, "qnn")
    assert decoder.batch_size == 1
    return decoder


def test_sequences_of_any_length_share_a_call(together: StaticDecoder, alone: StaticDecoder) -> None:
    both = Both(together, alone, SIZE)
    for place, length in enumerate((3, 17, 60, 1)):  # the third leaves the shorter context on the way
        both.prefill(place, (IDS * 4)[:length])
    for token in range(10, 20):
        both.step(range(SIZE), [token + place for place in range(SIZE)])
    assert both.shared == [SIZE] * 10


@pytest.mark.parametrize("places", [(0, 1), (3, 1), (2, 0, 3), (3, 1, 0, 2)])
def test_some_of_them_share_a_call_in_any_order(
    together: StaticDecoder, alone: StaticDecoder, places: Sequence[int]
) -> None:
    both = Both(together, alone, SIZE)
    for place in range(SIZE):
        both.prefill(place, IDS[: 4 + place])
    for token in (70, 80, 90):
        both.step(places, [token + place for place in places])
    both.step(range(SIZE), IDS[:SIZE])  # the others have lost nothing
    assert both.shared == [*[len(places)] * 3, SIZE]


def test_one_alone_goes_through_the_graph_for_one(together: StaticDecoder, alone: StaticDecoder) -> None:
    both = Both(together, alone, SIZE)
    both.step([2], [7])
    assert both.shared == []


def test_more_than_fit_a_call_take_several(together: StaticDecoder, alone: StaticDecoder) -> None:
    both = Both(together, alone, 7)
    for place in range(7):
        both.prefill(place, IDS[place : place + 5])
    both.step(range(7), IDS[:7])
    assert sorted(both.shared) == [3, 4]


def test_a_full_one_beside_them_stays_whole(together: StaticDecoder, alone: StaticDecoder) -> None:
    both = Both(together, alone, SIZE)
    both.prefill(0, (IDS * 8)[: CONTEXT - 1])
    for place in (1, 2):
        both.prefill(place, (IDS * 8)[: 70 + place])  # all of them in the longer context
    both.step((0, 1, 2), [1, 2, 3])
    assert both.room(0) == 0 and both.shared == [3]
    both.step((1, 2), [4, 5])
    assert both.shared == [3]  # each by itself: what is written beside them would go over its last row
    both.truncate(0, CONTEXT - 1)
    both.step((1, 2), [6, 7])
    assert both.shared == [3, 2]
    both.step([0], [8])


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_beside_a_sequence(together: StaticDecoder, alone: StaticDecoder, seed: int) -> None:
    random, both = Random(seed), Both(together, alone, SIZE + 2)
    places = range(SIZE + 2)
    for _ in range(60):
        place, other = random.sample(places, 2)
        match random.randrange(6):
            case 0 if both.room(place) > 2:
                length = random.randint(2, min(40, both.room(place)))
                both.prefill(place, random.choices(IDS, k=length))
            case 1:
                both.truncate(place, random.randint(0, both.ours[place].length))
            case 2 if both.ours[other].length:
                both.copy(place, other, random.randint(0, both.ours[other].length))
            case _:
                ready = [one for one in places if both.room(one)]
                chosen = random.sample(ready, random.randint(1, len(ready)))
                both.step(chosen, random.choices(IDS, k=len(chosen)))
    assert len(both.shared) > 10


def test_answers_of_requests_side_by_side_are_those_of_each_alone(
    together: StaticDecoder, alone: StaticDecoder
) -> None:
    prompts = [IDS[start : start + 9] for start in range(6)]

    def answers(decoder: StaticDecoder, *, at_once: bool) -> list[list[int]]:
        frames: list[FromWorker] = []
        caches = [decoder.new_cache() for _ in range(SIZE)]
        loop = TokenLoop(decoder, caches, frames.append, make_constraint=no_grammar, clock=count().__next__)
        for number, ids in enumerate(prompts):
            loop.submit(Submit(id=number, ids=ids, sampling=GREEDY, max_tokens=24))
            while not (at_once or loop.is_idle):
                loop.turn()
        while not loop.is_idle:
            loop.turn()
        tokens = [frame for frame in frames if isinstance(frame, Tokens)]
        return [[token for frame in tokens if frame.id == id for token in frame.ids] for id in range(len(prompts))]

    assert answers(together, at_once=True) == answers(alone, at_once=False)


def test_what_a_call_for_several_costs_decides_from_how_many_on_it_is_made(together: StaticDecoder) -> None:
    assert 2 <= static_open._min_batch(together) <= SIZE + 1


def test_a_driver_that_computes_it_wrongly_is_left_with_single_steps(
    npu_bundle: Path, npu: NpuDevice, tmp_path: Path, open_decoder: OpenDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    source = write_tiny_folder(tmp_path / "source", seed=1)
    target = NpuTarget(device=npu, contexts=(64, 128), width=WIDTH)
    other = build_bundle(source, tmp_path / "other", progress=lambda *_: None, target=target)
    ours, theirs = (open_decoder(bundle, "qnn", sequences=SIZE) for bundle in (npu_bundle, other))
    mixed = StaticDecoder(ours._prompts, ours._steps, ours.spec, batches=theirs._batches)
    assert static_open._min_batch(mixed) > SIZE
    assert "one by one" in caplog.text


def _nan(caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
    return np.full((len(ids), 384), np.nan, np.float32)


def _refused(caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
    raise EngineFailed("the device refuses")


@pytest.mark.parametrize("step", [_nan, _refused])
def test_a_driver_that_cannot_compute_it_is_left_with_single_steps(
    together: StaticDecoder, step: Callable[..., Logits], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together._batches[0], "step", step)
    assert static_open._min_batch(together) > SIZE


def test_a_call_for_more_sequences_than_a_short_context_has_rows_is_tried_too(
    tiny_source: Path, npu: NpuDevice, tmp_path: Path, open_decoder: OpenDecoder
) -> None:
    target = NpuTarget(device=npu, contexts=(16,), width=WIDTH, batch=20)
    bundle = build_bundle(tiny_source, tmp_path / "wide", progress=lambda *_: None, target=target)
    assert static_open._min_batch(open_decoder(bundle, "qnn", sequences=SIZE)) <= 21


def test_context_lengths_for_unlike_numbers_of_sequences_are_refused(
    tiny_source: Path, npu: NpuDevice, tmp_path: Path
) -> None:
    """Which sequences share a call, and which row is whose, is the same in all of them."""
    four, three = (
        build_bundle(
            tiny_source,
            tmp_path / str(size),
            progress=lambda *_: None,
            target=NpuTarget(device=npu, contexts=(64, 128), width=WIDTH, batch=size),
        )
        for size in (4, 3)
    )
    for file in three.glob("batch_ctx*"):
        shutil.copy(file, four)
    with pytest.raises(BundleError, match="disagree"):
        open_static_decoder(four, provider="qnn", sequences=SIZE)


def test_a_step_takes_no_new_memory(together: StaticDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    caches, made = [together.new_cache() for _ in range(SIZE)], []

    def noted(*args: Any) -> Buffer:
        made.append(args)
        return Buffer(*args)

    monkeypatch.setattr(static_batch, "Buffer", noted)
    together.step(caches, IDS[:SIZE])
    before = len(made)
    assert before > 0
    together.step(caches, IDS[:SIZE])
    assert len(made) == before
