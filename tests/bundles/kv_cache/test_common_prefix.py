from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.bundles.kv_cache.common_prefix import common_prefix


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [
        pytest.param([], [], 0, id="both_empty"),
        pytest.param([1, 2], [], 0, id="one_empty"),
        pytest.param([1, 2], [3, 2], 0, id="first_differs"),
        pytest.param([1, 2, 3], [1, 2, 4, 5], 2, id="third_differs"),
        pytest.param([1, 2], [1, 2, 3], 2, id="one_is_prefix"),
        pytest.param((1, 2), [1, 2], 2, id="tuple_and_list"),
        *(
            pytest.param([7] * 9000, [7] * length + [8] * (9000 - length), length, id=f"differs_at_{length}")
            for length in (4095, 4096, 4097, 8191, 8192, 8999, 9000)
        ),
        *(
            pytest.param([7] * 9000, [7] * length, length, id=f"ends_at_{length}")
            for length in (4095, 4096, 4097, 8192, 9000)
        ),
    ],
)
def test_common_prefix_length(a: list[int], b: list[int], length: int) -> None:
    assert common_prefix(a, b) == length


@given(st.lists(st.integers(0, 1), max_size=9), st.lists(st.integers(0, 1), max_size=9))
def test_common_prefix_is_equal_part_and_is_longest(a: list[int], b: list[int]) -> None:
    length = common_prefix(a, b)
    assert a[:length] == b[:length]
    assert a[: length + 1] != b[: length + 1] or length == len(a) == len(b)
