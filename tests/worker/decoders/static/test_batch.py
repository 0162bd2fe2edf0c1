"""Batched steps: each sequence gets the logits of single steps, whatever the other sequences do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from gateway.activity import Activity
from gateway.worker.decoders.base import KVCache, Logits
from gateway.worker.decoders.static import batch as static_batch
from gateway.worker.decoders.static.cache import Buffer
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.frames import FromWorker, Submit, Tokens
from gateway.worker.token_loop import TokenLoop
from tests.support.decoding import IDS, prefill
from tests.support.npu.fixtures import OpenDecoder
from tests.support.token_loop_fixtures import GREEDY, no_grammar

SIZE = 4
WIDTH = 8
CONTEXT = 128  # the bundle also has graphs for 64


class Pair:
    """The same sequences in two decoders. `batched` uses batched steps, `single` does not."""

    def __init__(self, batched: StaticDecoder, single: StaticDecoder, sequences: int) -> None:
        self.batched, self.single = batched, single
        self.batched_caches = [batched.new_cache() for _ in range(sequences)]
        self.single_caches = [single.new_cache() for _ in range(sequences)]
        self.calls: list[int] = []  # the number of sequences in each batched call
        for batch_step in batched._batch_steps:
            batch_step.run = self._recorded(batch_step.run)  # type: ignore[method-assign]

    def _recorded(self, run: Callable[..., Logits]) -> Callable[..., Logits]:
        def recorded(caches: Sequence[KVCache], ids: Sequence[int]) -> Logits:
            self.calls.append(len(ids))
            return run(caches, ids)

        return recorded

    def step(self, indices: Sequence[int], ids: Sequence[int]) -> None:
        logits = self.batched.step([self.batched_caches[index] for index in indices], ids)
        for row, index, token in zip(logits, indices, ids, strict=True):
            _assert_close(row, self.single.step([self.single_caches[index]], [token])[0])

    def prefill(self, index: int, ids: Sequence[int]) -> None:
        logits = prefill(self.batched, self.batched_caches[index], ids, WIDTH)
        _assert_close(logits, prefill(self.single, self.single_caches[index], ids, WIDTH))

    def truncate(self, index: int, length: int) -> None:
        for caches in (self.batched_caches, self.single_caches):
            caches[index].truncate(length)

    def copy(self, index: int, donor: int, length: int) -> None:
        for caches in (self.batched_caches, self.single_caches):
            caches[index].copy_from(caches[donor], length)

    def free_rows(self, index: int) -> int:
        return CONTEXT - self.batched_caches[index].length


def _assert_close(logits: Logits, expected: Logits) -> None:
    np.testing.assert_allclose(logits, expected, atol=0.05)


@pytest.fixture
def batched(npu_bundle: Path, open_decoder: OpenDecoder) -> StaticDecoder:
    decoder = open_decoder(npu_bundle, "qnn", sequences=SIZE)
    assert decoder.batch_size == SIZE and decoder.spec.context_length == CONTEXT
    return decoder


@pytest.fixture
def single(npu_bundle: Path, open_decoder: OpenDecoder) -> StaticDecoder:
    decoder = open_decoder(npu_bundle, "qnn")
    assert decoder.batch_size == 1
    return decoder


def test_sequences_of_different_lengths_share_calls(batched: StaticDecoder, single: StaticDecoder) -> None:
    pair = Pair(batched, single, SIZE)
    for index, length in enumerate((3, 17, 60, 1)):  # the third one outgrows the context of 64
        pair.prefill(index, (IDS * 4)[:length])
    for token in range(10, 20):
        pair.step(range(SIZE), [token + index for index in range(SIZE)])
    assert pair.calls == [SIZE] * 10


@pytest.mark.parametrize("indices", [(0, 1), (3, 1), (2, 0, 3), (3, 1, 0, 2)], ids=str)
def test_step_of_some_sequences_keeps_the_others(
    batched: StaticDecoder, single: StaticDecoder, indices: Sequence[int]
) -> None:
    pair = Pair(batched, single, SIZE)
    for index in range(SIZE):
        pair.prefill(index, IDS[: 4 + index])
    for token in (70, 80, 90):
        pair.step(indices, [token + index for index in indices])
    pair.step(range(SIZE), IDS[:SIZE])
    assert pair.calls == [*[len(indices)] * 3, SIZE]


def test_step_of_one_sequence_uses_the_single_graph(batched: StaticDecoder, single: StaticDecoder) -> None:
    pair = Pair(batched, single, SIZE)
    pair.step([2], [7])
    assert pair.calls == []


def test_step_of_more_sequences_than_batch_rows_takes_two_calls(batched: StaticDecoder, single: StaticDecoder) -> None:
    pair = Pair(batched, single, 7)
    for index in range(7):
        pair.prefill(index, IDS[index : index + 5])
    pair.step(range(7), IDS[:7])
    assert sorted(pair.calls) == [3, 4]


def test_full_cache_disables_batched_steps_of_its_group(batched: StaticDecoder, single: StaticDecoder) -> None:
    pair = Pair(batched, single, SIZE)
    pair.prefill(0, (IDS * 8)[: CONTEXT - 1])
    for index in (1, 2):
        pair.prefill(index, (IDS * 8)[: 70 + index])  # all three are in the longer context
    pair.step((0, 1, 2), [1, 2, 3])
    assert pair.free_rows(0) == 0 and pair.calls == [3]
    pair.step((1, 2), [4, 5])
    assert pair.calls == [3]  # single steps: the scratch row would overwrite the last row of the full cache
    pair.truncate(0, CONTEXT - 1)
    pair.step((1, 2), [6, 7])
    assert pair.calls == [3, 2]
    pair.step([0], [8])


@pytest.mark.parametrize(
    ("seed", "operations"), [(0, 30), *(pytest.param(seed, 60, marks=pytest.mark.slow) for seed in range(5))]
)
def test_random_operations_give_logits_of_single_steps(
    batched: StaticDecoder, single: StaticDecoder, seed: int, operations: int
) -> None:
    random, pair = Random(seed), Pair(batched, single, SIZE + 2)
    indices = range(SIZE + 2)
    for _ in range(operations):
        index, other = random.sample(indices, 2)
        match random.randrange(6):
            case 0 if pair.free_rows(index) > 2:
                length = random.randint(2, min(40, pair.free_rows(index)))
                pair.prefill(index, random.choices(IDS, k=length))
            case 1:
                pair.truncate(index, random.randint(0, pair.batched_caches[index].length))
            case 2 if pair.batched_caches[other].length:
                pair.copy(index, other, random.randint(0, pair.batched_caches[other].length))
            case _:
                ready = [each for each in indices if pair.free_rows(each)]
                chosen = random.sample(ready, random.randint(1, len(ready)))
                pair.step(chosen, random.choices(IDS, k=len(chosen)))
    assert len(pair.calls) > operations / 6


def test_concurrent_requests_get_answers_of_sequential_requests(batched: StaticDecoder, single: StaticDecoder) -> None:
    prompts = [IDS[start : start + 9] for start in range(6)]

    def answers(decoder: StaticDecoder, *, concurrent: bool) -> list[list[int]]:
        frames: list[FromWorker] = []
        caches = [decoder.new_cache() for _ in range(SIZE)]
        loop = TokenLoop(
            decoder, caches, frames.append, make_constraint=no_grammar, activity=Activity(clock=count().__next__)
        )
        for id, ids in enumerate(prompts):
            loop.submit(Submit(id=id, ids=ids, sampling=GREEDY, max_tokens=24))
            while not (concurrent or loop.is_idle):
                loop.turn()
        while not loop.is_idle:
            loop.turn()
        tokens = [frame for frame in frames if isinstance(frame, Tokens)]
        return [[token for frame in tokens if frame.id == id for token in frame.ids] for id in range(len(prompts))]

    assert answers(batched, concurrent=True) == answers(single, concurrent=False)


def test_second_batched_step_allocates_no_buffers(batched: StaticDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    caches, allocations = [batched.new_cache() for _ in range(SIZE)], []

    def recorded(*args: Any) -> Buffer:
        allocations.append(args)
        return Buffer(*args)

    monkeypatch.setattr(static_batch, "Buffer", recorded)
    batched.step(caches, IDS[:SIZE])
    before = len(allocations)
    assert before > 0
    batched.step(caches, IDS[:SIZE])
    assert len(allocations) == before
