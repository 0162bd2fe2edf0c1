from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.worker.decoders.cpu_cache import SlotBuffers, SlotCache, SlotPool


def make_pool(slots: int = 3, context: int = 64, snapshot_rows: int = 0) -> tuple[SlotPool, SlotBuffers]:
    buffers = SlotBuffers(4, slots, (2, 8), context, np.float32)
    caches = [SlotCache(buffers, index) for index in range(slots)]
    return SlotPool(caches, snapshot_rows * buffers.bytes_per_row()), buffers


def compute(pool: SlotPool, buffers: SlotBuffers, ids: list[int], owner: str = "") -> tuple[object, int]:
    """Take a slot and write a row for every missing token, as a decoder would; rows show their token."""
    slot = pool.take(ids, owner)
    cached = slot.cache.length
    assert isinstance(slot.cache, SlotCache)
    for position in range(cached, len(ids)):
        for buffer in buffers.buffers:
            buffer[slot.cache.index, :, position] = ids[position]
    slot.cache.length = len(ids)
    return slot, cached


def rows(buffers: SlotBuffers, slot: object) -> list[int]:
    index, length = slot.cache.index, slot.cache.length  # type: ignore[attr-defined]
    return [int(value) for value in buffers.buffers[-1][index, 0, :length, 0]]


def test_busy_slots_lie_side_by_side() -> None:
    """Whatever was used last: what lies between two busy ones would be computed along."""
    pool, _ = make_pool(slots=6)
    first, second, *others = (pool.take([number], "") for number in range(6))
    for slot in (*others, second):
        pool.give_back(slot)
    pool.give_back(pool.take([9], ""))  # beside the busy one, although it was used last
    assert pool.slots.index(first) == 0
    assert [pool.slots.index(pool.take([number], "")) for number in (10, 11, 12)] == [1, 2, 3]


def test_rows_for_which_there_is_no_room_beside_are_not_given_up_to_lie_side_by_side() -> None:
    pool, buffers = make_pool(slots=3, snapshot_rows=32)
    compute(pool, buffers, [1])
    long, _ = compute(pool, buffers, list(range(2, 42)))
    pool.give_back(long)
    compute(pool, buffers, [100])
    assert compute(pool, buffers, list(range(2, 44)))[1] == 40


def test_a_run_of_slots_is_a_contiguous_view() -> None:
    _, buffers = make_pool()
    for buffer, view in zip(buffers.buffers, buffers.run(1, 2), strict=True):
        assert view.shape == (2, 2, 64 + 1, 8)  # one row that no sequence owns
        assert view.flags.c_contiguous
        assert view.base is not None and np.shares_memory(view, buffer)


def test_the_second_turn_computes_only_what_is_new() -> None:
    pool, buffers = make_pool()
    slot, cached = compute(pool, buffers, [1, 2, 3, 4])
    assert cached == 0
    pool.give_back(slot)
    again, cached = compute(pool, buffers, [1, 2, 3, 4, 5, 6])
    assert (again, cached) == (slot, 4)
    assert rows(buffers, again) == [1, 2, 3, 4, 5, 6]


def test_the_same_prompt_again_still_computes_its_last_two_tokens() -> None:
    pool, buffers = make_pool()
    pool.give_back(compute(pool, buffers, [1, 2, 3, 4])[0])
    assert compute(pool, buffers, [1, 2, 3, 4])[1] == 2


def test_owners_do_not_share() -> None:
    pool, buffers = make_pool()
    pool.give_back(compute(pool, buffers, [1, 2, 3, 4], "alice")[0])
    assert compute(pool, buffers, [1, 2, 3, 4], "bob")[1] == 0


def test_a_prefix_is_copied_out_of_a_busy_slot() -> None:
    pool, buffers = make_pool()
    first, _ = compute(pool, buffers, [1, 2, 3, 4, 5])
    second, cached = compute(pool, buffers, [1, 2, 3, 9, 9])
    assert second is not first and cached == 3
    assert rows(buffers, second) == [1, 2, 3, 9, 9]
    assert rows(buffers, first) == [1, 2, 3, 4, 5]


def test_a_short_prefix_does_not_cost_a_long_conversation() -> None:
    pool, buffers = make_pool()
    long, _ = compute(pool, buffers, list(range(20)))
    pool.give_back(long)
    short, cached = compute(pool, buffers, [0, 1, 2, 50, 51])
    assert cached == 3 and short is not long
    pool.give_back(short)
    assert compute(pool, buffers, list(range(22)))[1] == 20


def test_the_least_recently_used_slot_goes_first() -> None:
    pool, buffers = make_pool(2)
    old, _ = compute(pool, buffers, [1, 1, 1])
    new, _ = compute(pool, buffers, [2, 2, 2])
    pool.give_back(new)
    pool.give_back(old)
    assert pool.take([3, 3, 3], "") is new


def test_a_failed_sequence_leaves_nothing() -> None:
    pool, buffers = make_pool()
    pool.discard(compute(pool, buffers, [1, 2, 3])[0])
    assert compute(pool, buffers, [1, 2, 3])[1] == 0


def test_no_free_slot_is_an_error() -> None:
    pool, _ = make_pool(1)
    pool.take([1], "")
    assert not pool.has_free
    with pytest.raises(IndexError):
        pool.take([1], "")


# -- beside the slots --------------------------------------------------------------------------------------------------


def conversation(number: int, size: int = 20) -> list[int]:
    return [number * 100 + place for place in range(size)]


def converse(pool: SlotPool, buffers: SlotBuffers, ids: list[int], owner: str = "") -> int:
    """One request from beginning to end; how much of it was cached."""
    slot, cached = compute(pool, buffers, ids, owner)
    assert rows(buffers, slot) == ids
    pool.give_back(slot)
    return cached


def test_more_conversations_than_slots_keep_their_rows() -> None:
    pool, buffers = make_pool(2, snapshot_rows=200)
    for turn in range(3):
        cached = [converse(pool, buffers, conversation(number, 20 + 5 * turn)) for number in range(5)]
        assert cached == [max(0, 15 + 5 * turn) if turn else 0] * 5


def test_no_more_is_kept_than_there_is_room_for() -> None:
    pool, buffers = make_pool(1, snapshot_rows=45)
    for number in range(4):
        converse(pool, buffers, conversation(number))
    assert sum(slot.cache.length for slot in pool._snapshots) == 40
    assert converse(pool, buffers, conversation(0, 30)) == 0  # the least recently used went first
    assert converse(pool, buffers, conversation(3, 30)) == 20


def test_what_is_kept_has_an_owner() -> None:
    pool, buffers = make_pool(1, snapshot_rows=100)
    converse(pool, buffers, conversation(1), "alice")
    converse(pool, buffers, conversation(2), "bob")
    assert converse(pool, buffers, conversation(1, 30), "bob") == 0
    assert converse(pool, buffers, conversation(1, 30), "alice") == 20


def test_a_conversation_is_kept_once() -> None:
    pool, buffers = make_pool(1, snapshot_rows=1000)
    for turn in range(4):
        for number in range(2):
            converse(pool, buffers, conversation(number, 20 + turn))
    assert len(pool._snapshots) == 2


def test_two_that_begin_alike_both_go_on_from_what_is_kept() -> None:
    pool, buffers = make_pool(1, snapshot_rows=1000)
    system = conversation(9, 30)
    converse(pool, buffers, [*system, 1, 2, 3])
    assert converse(pool, buffers, conversation(5)) == 0
    assert converse(pool, buffers, [*system, 4, 5, 6]) == 30
    assert converse(pool, buffers, [*system, 7, 8, 9]) == 30


@pytest.mark.parametrize("snapshot_rows", [0, 40])
@given(requests=st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=24), st.booleans()), max_size=30))
def test_rows_are_right_whatever_came_before(requests: list[tuple[list[int], bool]], snapshot_rows: int) -> None:
    pool, buffers = make_pool(3, 32, snapshot_rows)
    busy: list[object] = []
    for ids, stays in requests:
        if not pool.has_free:
            pool.give_back(busy.pop(0))
        slot, cached = compute(pool, buffers, ids)
        assert cached < len(ids)
        assert rows(buffers, slot) == ids
        if stays:
            busy.append(slot)
        else:
            pool.give_back(slot)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_unused_context_costs_no_memory() -> None:
    """A child of its own, so that freed memory of other tests cannot hide the growth."""
    code = """
import numpy as np
from gateway.worker.decoders.cpu_cache import SlotBuffers
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
buffers = SlotBuffers(60, 4, (3, 64), 8192, np.float32)
for buffer in buffers.buffers:
    buffer[0, :, :100] = 1
print(resident() - before, 100 * buffers.bytes_per_row())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    grown, written = map(int, out.split())
    assert written <= grown < 2 * written
