from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gateway.builder.graphs.rows import MAX_PADDING_ROWS
from gateway.worker.decoders.cpu_cache import PADDING_ROWS, SlotBuffers, SlotCache


def filled_cache(buffers: SlotBuffers, index: int, length: int) -> SlotCache:
    """A cache whose row i has the value i in each buffer."""
    cache = SlotCache(buffers, index)
    for buffer in buffers.buffers:
        buffer[index, :, :length] = np.arange(length)[:, None]
    cache.length = length
    return cache


def test_run_of_slots_is_contiguous_view() -> None:
    buffers = SlotBuffers(4, 3, (2, 8), 64, np.float32)
    for buffer, view in zip(buffers.buffers, buffers.run(1, 2), strict=True):
        assert view.shape == (2, 2, 64 + PADDING_ROWS, 8)
        assert view.flags.c_contiguous
        assert view.base is not None and np.shares_memory(view, buffer)


def test_slot_has_the_padding_rows_of_our_graphs() -> None:
    assert PADDING_ROWS == MAX_PADDING_ROWS


def test_snapshot_keeps_rows_when_slot_is_overwritten() -> None:
    buffers = SlotBuffers(2, 2, (2, 8), 64, np.float32)
    cache = filled_cache(buffers, 0, 10)
    snapshot = cache.snapshot()
    for buffer in buffers.buffers:
        buffer[0] = -1
    other = SlotCache(buffers, 1)
    other.copy_from(snapshot, 6)
    assert (snapshot.length, snapshot.nbytes) == (10, 10 * buffers.bytes_per_row())
    assert all((rows == np.arange(6)[:, None]).all() for rows in other.rows())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_unused_context_takes_no_memory() -> None:
    """In a child process, so that memory which other tests freed cannot hide the growth.

    An emulator needs memory for each mapped page too, so the context is not larger than necessary.
    """
    code = """
import numpy as np
from gateway.worker.decoders.cpu_cache import SlotBuffers
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
buffers = SlotBuffers(60, 4, (3, 64), 2048, np.float32)
for buffer in buffers.buffers:
    buffer[0, :, :100] = 1
print(resident() - before, 100 * buffers.bytes_per_row())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    grown, written = map(int, out.split())
    assert written <= grown < 2 * written
