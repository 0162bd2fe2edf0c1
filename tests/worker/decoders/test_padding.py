from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.worker.decoders.padding import MAX_EXTRA_ROWS, ROWS, Padding, span


@given(length=st.integers(0, 300), new=st.integers(1, 64), data=st.data())
def test_rows_of_fours_are_whole_blocks_with_the_wanted_rows(length: int, new: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, new))
    rows = span(Padding.FOURS, length, new, wanted, block=128, is_alone=True)
    assert rows.start % ROWS == rows.end % ROWS == rows.kept % ROWS == 0
    assert length - ROWS < rows.start <= length and length + new <= rows.end < length + new + ROWS
    assert rows.end - rows.kept <= length + new - wanted
    assert rows.rows <= new + MAX_EXTRA_ROWS


@given(length=st.integers(0, 300), new=st.integers(1, 64), data=st.data())
def test_no_row_is_alone_in_pairs(length: int, new: int, data: st.DataObject) -> None:
    """In the whole call, in the last layer, which computes only the kept rows, and in attention's last block."""
    wanted = data.draw(st.integers(1, new))
    rows = span(Padding.PAIRS, length, new, wanted, block=32, is_alone=True)
    assert rows.start == length and rows.rows in (new, new + 1)
    assert rows.rows > 1 and rows.rows % 32 != 1 and rows.kept > 1


@pytest.mark.parametrize("new", [1, 2, 3, 31, 32, 64])
def test_no_padding_computes_only_new_rows(new: int) -> None:
    rows = span(Padding.NONE, 10, new, 1, block=32, is_alone=True)
    assert (rows.start, rows.end, rows.kept) == (10, 10 + new, 1)


def test_pairs_add_no_row_to_a_batch() -> None:
    assert span(Padding.PAIRS, 10, 1, 1, block=32, is_alone=False) == span(
        Padding.NONE, 10, 1, 1, block=32, is_alone=False
    )
