from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.worker.decoders.cpu_cache import SlotBuffers, SlotCache
from gateway.worker.slots import SlotPool


def make_pool(slots: int = 3, context: int = 64, snapshot_rows: int = 0) -> tuple[SlotPool, SlotBuffers]:
    buffers = SlotBuffers(4, slots, (2, 8), context, np.float32)
    caches = [SlotCache(buffers, index) for index in range(slots)]
    return SlotPool(caches, snapshot_rows * buffers.bytes_per_row()), buffers


def compute(pool: SlotPool, buffers: SlotBuffers, ids: list[int], owner: str = "") -> tuple[object, int]:
    """Take a slot and write a row for each missing token, as a decoder does. The value of a row is its token."""
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


def test_slot_choice_prefers_slot_adjacent_to_busy_ones() -> None:
    """A batched step also computes the free slots between two busy ones."""
    pool, _ = make_pool(slots=6)
    first, second, *others = (pool.take([number], "") for number in range(6))
    for slot in (*others, second):
        pool.release(slot)
    pool.release(pool.take([9], ""))  # adjacent to the busy one, although it was used last
    assert pool.slots.index(first) == 0
    assert [pool.slots.index(pool.take([number], "")) for number in (10, 11, 12)] == [1, 2, 3]


def test_slot_choice_keeps_rows_too_large_for_snapshot() -> None:
    pool, buffers = make_pool(slots=3, snapshot_rows=32)
    compute(pool, buffers, [1])
    long, _ = compute(pool, buffers, list(range(2, 42)))
    pool.release(long)
    compute(pool, buffers, [100])
    assert compute(pool, buffers, list(range(2, 44)))[1] == 40


def test_second_turn_reuses_rows_of_first() -> None:
    pool, buffers = make_pool()
    slot, cached = compute(pool, buffers, [1, 2, 3, 4])
    assert cached == 0
    pool.release(slot)
    again, cached = compute(pool, buffers, [1, 2, 3, 4, 5, 6])
    assert (again, cached) == (slot, 4)
    assert rows(buffers, again) == [1, 2, 3, 4, 5, 6]


def test_repeated_prompt_computes_last_two_tokens() -> None:
    pool, buffers = make_pool()
    pool.release(compute(pool, buffers, [1, 2, 3, 4])[0])
    assert compute(pool, buffers, [1, 2, 3, 4])[1] == 2


def test_prefix_of_other_owner_is_not_reused() -> None:
    pool, buffers = make_pool()
    pool.release(compute(pool, buffers, [1, 2, 3, 4], "alice")[0])
    assert compute(pool, buffers, [1, 2, 3, 4], "bob")[1] == 0


def test_prefix_in_busy_slot_is_copied() -> None:
    pool, buffers = make_pool()
    first, _ = compute(pool, buffers, [1, 2, 3, 4, 5])
    second, cached = compute(pool, buffers, [1, 2, 3, 9, 9])
    assert second is not first and cached == 3
    assert rows(buffers, second) == [1, 2, 3, 9, 9]
    assert rows(buffers, first) == [1, 2, 3, 4, 5]


def test_slot_choice_keeps_long_conversation_for_short_prefix() -> None:
    pool, buffers = make_pool()
    long, _ = compute(pool, buffers, list(range(20)))
    pool.release(long)
    short, cached = compute(pool, buffers, [0, 1, 2, 50, 51])
    assert cached == 3 and short is not long
    pool.release(short)
    assert compute(pool, buffers, list(range(22)))[1] == 20


def test_slot_choice_takes_least_recently_used() -> None:
    pool, buffers = make_pool(2)
    old, _ = compute(pool, buffers, [1, 1, 1])
    new, _ = compute(pool, buffers, [2, 2, 2])
    pool.release(new)
    pool.release(old)
    assert pool.take([3, 3, 3], "") is new


def test_discarded_rows_are_not_reused() -> None:
    pool, buffers = make_pool()
    pool.discard(compute(pool, buffers, [1, 2, 3])[0])
    assert compute(pool, buffers, [1, 2, 3])[1] == 0


def test_take_without_free_slot_raises() -> None:
    pool, _ = make_pool(1)
    pool.take([1], "")
    assert not pool.has_free
    with pytest.raises(IndexError):
        pool.take([1], "")


# -- snapshots ---------------------------------------------------------------------------------------------------------


def conversation(number: int, size: int = 20) -> list[int]:
    return [number * 100 + offset for offset in range(size)]


def converse(pool: SlotPool, buffers: SlotBuffers, ids: list[int], owner: str = "") -> int:
    """One request from start to end; returns the number of reused rows."""
    slot, cached = compute(pool, buffers, ids, owner)
    assert rows(buffers, slot) == ids
    pool.release(slot)
    return cached


def test_more_conversations_than_slots_reuse_snapshots() -> None:
    pool, buffers = make_pool(2, snapshot_rows=200)
    for turn in range(3):
        cached = [converse(pool, buffers, conversation(number, 20 + 5 * turn)) for number in range(5)]
        assert cached == [max(0, 15 + 5 * turn) if turn else 0] * 5


def test_snapshots_stay_within_limit_and_evict_least_recently_used() -> None:
    pool, buffers = make_pool(1, snapshot_rows=45)
    for number in range(4):
        converse(pool, buffers, conversation(number))
    assert sum(slot.cache.length for slot in pool._snapshots) == 40
    assert converse(pool, buffers, conversation(0, 30)) == 0  # evicted: least recently used
    assert converse(pool, buffers, conversation(3, 30)) == 20


def test_snapshot_of_other_owner_is_not_reused() -> None:
    pool, buffers = make_pool(1, snapshot_rows=100)
    converse(pool, buffers, conversation(1), "alice")
    converse(pool, buffers, conversation(2), "bob")
    assert converse(pool, buffers, conversation(1, 30), "bob") == 0
    assert converse(pool, buffers, conversation(1, 30), "alice") == 20


def test_longer_snapshot_replaces_its_prefix() -> None:
    pool, buffers = make_pool(1, snapshot_rows=1000)
    for turn in range(4):
        for number in range(2):
            converse(pool, buffers, conversation(number, 20 + turn))
    assert len(pool._snapshots) == 2


def test_snapshot_is_reused_by_two_conversations() -> None:
    pool, buffers = make_pool(1, snapshot_rows=1000)
    system = conversation(9, 30)
    converse(pool, buffers, [*system, 1, 2, 3])
    assert converse(pool, buffers, conversation(5)) == 0
    assert converse(pool, buffers, [*system, 4, 5, 6]) == 30
    assert converse(pool, buffers, [*system, 7, 8, 9]) == 30


@pytest.mark.parametrize("snapshot_rows", [0, 40])
@given(requests=st.lists(st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=24), st.booleans()), max_size=30))
def test_any_request_order_gives_correct_rows(requests: list[tuple[list[int], bool]], snapshot_rows: int) -> None:
    pool, buffers = make_pool(3, 32, snapshot_rows)
    busy: list[object] = []
    for ids, stays in requests:
        if not pool.has_free:
            pool.release(busy.pop(0))
        slot, cached = compute(pool, buffers, ids)
        assert cached < len(ids)
        assert rows(buffers, slot) == ids
        if stays:
            busy.append(slot)
        else:
            pool.release(slot)
