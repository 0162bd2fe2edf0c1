"""StaticCache: valid rows keep their contents through every change of the layout."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.worker.decoders.static.cache import Buffer, CacheMemory, StaticCache, TensorLayout


def layout(rows: int, empty: int = 0) -> dict[str, TensorLayout]:
    """Keys (heads, 1, size, rows) and values (heads, 1, rows, size)."""
    dtype = np.dtype(np.uint8)
    return {
        "keys": TensorLayout(shape=(2, 1, 4, rows), dtype=dtype, axis=3, empty=empty),
        "values": TensorLayout(shape=(2, 1, rows, 4), dtype=dtype, axis=2, empty=empty),
    }


def fill(cache: StaticCache, rows: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 256, (2, 1, 4, rows), np.uint8)
    added = slice(cache.length, cache.length + rows)
    cache.buffers["keys"].array[..., added] = codes
    cache.buffers["values"].array[:, :, added] = codes.swapaxes(2, 3)
    cache.length += rows


def valid_rows(cache: StaticCache) -> np.ndarray:
    keys = cache.buffers["keys"].array[..., : cache.length]
    values = cache.buffers["values"].array[:, :, : cache.length]
    assert np.array_equal(keys, values.swapaxes(2, 3))
    return keys.copy()


def test_buffer_value_and_array_share_memory() -> None:
    buffer = Buffer((2, 3), np.float16)
    buffer.array[1, 2] = 5
    assert buffer.value.numpy()[1, 2] == 5
    assert buffer.value.data_ptr() == buffer.array.ctypes.data


def test_buffer_without_device_memory_uses_host_memory() -> None:
    assert Buffer((2, 3), np.float16, memory="not a memory info").array.shape == (2, 3)


def test_rows_after_valid_ones_contain_empty_value() -> None:
    cache = StaticCache()
    cache.set_layout(layout(8, empty=128))
    fill(cache, 3, seed=0)
    assert (cache.buffers["keys"].array[..., 3:] == 128).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(10, 40), min_size=1, max_size=5), st.integers(1, 10))
def test_layout_change_keeps_valid_rows(sizes: list[int], rows: int) -> None:
    cache = StaticCache()
    cache.set_layout(layout(10))
    fill(cache, rows, seed=rows)
    before = valid_rows(cache)
    for size in sizes:
        cache.set_layout(layout(size))
        assert np.array_equal(valid_rows(cache), before)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from("psdwt"), st.integers(0, 9)), max_size=40))
def test_caches_that_share_memory_keep_their_rows(actions: list[tuple[int, str, int]]) -> None:
    """Two caches change between the layouts for prompts, steps and drafts, append rows (w) and drop rows (t)."""
    memory, layouts = CacheMemory(), {"p": layout(30), "s": layout(40), "d": layout(35)}
    sequences = [StaticCache(memory, index) for index in range(2)]
    expected = [np.zeros((2, 1, 4, 0), np.uint8) for _ in sequences]
    for cache in sequences:
        cache.set_layout(layouts["p"])
    for step, (index, action, count) in enumerate(actions):
        cache = sequences[index]
        if action == "w":
            rows = min(count, 30 - cache.length)
            fill(cache, rows, seed=step)
            expected[index] = np.concatenate([expected[index], valid_rows(cache)[..., cache.length - rows :]], axis=3)
        elif action == "t":
            cache.truncate(min(count, cache.length))
            expected[index] = expected[index][..., : cache.length]
        else:
            cache.set_layout(layouts[action])
        for each, rows_of in zip(sequences, expected, strict=True):
            assert np.array_equal(valid_rows(each), rows_of)
    assert len(memory._free) <= 2


def test_next_prompt_gets_tensors_of_last_one_back() -> None:
    memory, prompts, steps = CacheMemory(), layout(10), layout(12)
    cache, other = StaticCache(memory, 0), StaticCache(memory, 1)
    cache.set_layout(prompts)
    of_prompts = cache.buffers
    cache.set_layout(steps)
    cache.set_layout(prompts)
    assert cache.buffers is of_prompts
    cache.set_layout(steps)
    other.set_layout(prompts)
    assert other.buffers is of_prompts
    other.set_layout(steps)
    cache.set_layout(layout(10))  # an equal one, of another chain of graphs
    assert cache.buffers is of_prompts


def test_same_layout_keeps_buffers() -> None:
    cache, same = StaticCache(), layout(10)
    cache.set_layout(same)
    buffers = cache.buffers
    cache.set_layout(same)
    assert cache.buffers is buffers


def test_copy_is_independent_of_donor() -> None:
    donor, copy = StaticCache(), StaticCache()
    donor.set_layout(layout(10))
    fill(donor, 6, seed=1)
    copy.copy_from(donor, 4)
    expected = valid_rows(donor)[..., :4]
    donor.truncate(0)
    fill(donor, 6, seed=2)
    assert copy.length == 4 and np.array_equal(valid_rows(copy), expected)


def test_snapshot_rows_can_be_copied_back() -> None:
    cache, other = StaticCache(), StaticCache()
    cache.set_layout(layout(32))
    fill(cache, 10, seed=3)
    before, snapshot = valid_rows(cache), cache.snapshot()
    assert snapshot.nbytes == cache.nbytes > 0
    cache.truncate(0)
    fill(cache, 10, seed=4)
    other.copy_from(snapshot, 7)
    assert np.array_equal(valid_rows(other), before[..., :7])
