"""A cache in buffers of fixed shape: rows stay what they are, however the buffers are laid out."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.worker.decoders.static.cache import Buffer, StaticCache, TensorLayout


def layout(rows: int, empty: int = 0) -> dict[str, TensorLayout]:
    """Keys lie across (heads, 1, size, rows), values along (heads, 1, rows, size)."""
    kind = np.dtype(np.uint8)
    return {
        "keys": TensorLayout(shape=(2, 1, 4, rows), dtype=kind, axis=3, empty=empty),
        "values": TensorLayout(shape=(2, 1, rows, 4), dtype=kind, axis=2, empty=empty),
    }


def fill(cache: StaticCache, rows: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 256, (2, 1, 4, rows), np.uint8)
    cache.write("keys", codes, cache.length)
    cache.write("values", codes.swapaxes(2, 3), cache.length)
    cache.length += rows


def held(cache: StaticCache) -> np.ndarray:
    keys = cache.buffers["keys"].array[..., : cache.length]
    values = cache.buffers["values"].array[:, :, : cache.length]
    assert np.array_equal(keys, values.swapaxes(2, 3))
    return keys.copy()


def test_host_and_device_share_the_bytes() -> None:
    buffer = Buffer((2, 3), np.float16)
    buffer.array[1, 2] = 5
    assert buffer.value.numpy()[1, 2] == 5
    assert buffer.value.data_ptr() == buffer.array.ctypes.data


def test_memory_that_a_driver_does_not_give_is_plain_memory() -> None:
    assert Buffer((2, 3), np.float16, memory="no memory at all").array.shape == (2, 3)


def test_rows_that_are_not_valid_hold_the_code_of_zero() -> None:
    cache = StaticCache()
    cache.lay_out(layout(8, empty=128))
    fill(cache, 3, seed=0)
    assert (cache.buffers["keys"].array[..., 3:] == 128).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(10, 40), min_size=1, max_size=5), st.integers(1, 10))
def test_rows_survive_every_change_of_layout(sizes: list[int], rows: int) -> None:
    cache = StaticCache()
    cache.lay_out(layout(10))
    fill(cache, rows, seed=rows)
    before = held(cache)
    for size in sizes:
        cache.lay_out(layout(size))
        assert np.array_equal(held(cache), before)


def test_the_same_layout_again_moves_nothing() -> None:
    cache, wanted = StaticCache(), layout(10)
    cache.lay_out(wanted)
    buffers = cache.buffers
    cache.lay_out(wanted)
    assert cache.buffers is buffers


def test_a_copy_is_independent_of_its_donor() -> None:
    donor, copy = StaticCache(), StaticCache()
    donor.lay_out(layout(10))
    fill(donor, 6, seed=1)
    copy.copy_from(donor, 4)
    expected = held(donor)[..., :4]
    donor.truncate(0)
    fill(donor, 6, seed=2)
    assert copy.length == 4 and np.array_equal(held(copy), expected)


def test_rows_that_are_kept_can_be_copied_back() -> None:
    cache, other = StaticCache(), StaticCache()
    cache.lay_out(layout(32))
    fill(cache, 10, seed=3)
    before, kept = held(cache), cache.snapshot()
    assert kept.nbytes == cache.nbytes > 0
    cache.truncate(0)
    fill(cache, 10, seed=4)
    other.copy_from(kept, 7)
    assert np.array_equal(held(other), before[..., :7])
