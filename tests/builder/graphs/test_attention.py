"""The nodes of `GroupPlanner`, run alone: which calls have the grouped layout, and which rows it plans.

That both layouts give the same bits is tested with whole decoders (tests/worker/decoders).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto

from gateway.builder.graphs.attention import GroupPlanner
from gateway.builder.graphs.rows import RowPlanner
from gateway.builder.graphs.writer import GraphWriter
from gateway.builder.sources.detect import open_source
from tests.support.row_plans import RowPlans
from tests.support.tiny import write_tiny_folder

HEADS, KV_HEADS = 6, 2
_OUTPUTS = {
    "is_grouped": TensorProto.BOOL,
    "grouped.heads": TensorProto.INT64,
    "grouped.back": TensorProto.INT64,
    "grouped.positions": TensorProto.INT64,
    "grouped.bias": TensorProto.FLOAT,
    "grouped.seqlens_k": TensorProto.INT32,
    "grouped.query_seqlens": TensorProto.INT32,
    "grouped.total_sequence_length": TensorProto.INT32,
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RowPlans:
    folder = tmp_path_factory.mktemp("attention")
    config = replace(open_source(write_tiny_folder(folder / "tiny")).config, heads=HEADS, kv_heads=KV_HEADS)

    def write(graph: GraphWriter) -> None:
        RowPlanner(graph, 2 * config.head_dim).write()
        GroupPlanner(graph, config, half=False).write()

    return RowPlans(folder / "rows.onnx", _OUTPUTS, write)


@pytest.mark.parametrize(
    ("tokens", "lengths", "capacity", "is_grouped"),
    [
        (1, [1], 256, True),
        (9, [9, 90], 256, True),  # all that a block of queries can hold
        (10, [90], 256, False),
        (64, [64], 256, False),
        (1, [90], 92, True),  # three rows, the last one at 91
        (1, [90], 91, False),
        (1, [5, 90], 91, False),
        (2, [1], 256, False),  # a mask that is shorter than the tokens
    ],
)
def test_few_tokens_with_free_rows_are_grouped(
    plan: RowPlans, tokens: int, lengths: Sequence[int], capacity: int, is_grouped: bool
) -> None:
    planned = plan(tokens, lengths, capacity=capacity)
    assert planned["is_grouped"].tolist() == [is_grouped]
    assert bool(planned["grouped.bias"].size) is is_grouped


@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_rows_have_the_heads_of_their_group_and_see_their_own_token(plan: RowPlans, multiple: int) -> None:
    """Two sequences with two tokens each, three query heads to a key."""
    planned = plan(2, [12, 7], multiple=multiple)
    ends, rows = planned["grouped.seqlens_k"] + 1, planned["grouped.query_seqlens"]
    assert (ends - rows).tolist() == [10, 5] and (rows >= 6).all() and not (ends % multiple).any()
    assert planned["grouped.total_sequence_length"].tolist() == [ends.max()]
    heads_of_row = HEADS + 2 * KV_HEADS
    for sequence, before in enumerate((10, 5)):
        for row in range(6):
            token, member = row % 2, row // 2
            flat, heads = np.divmod(planned["grouped.heads"][sequence, row], heads_of_row)
            assert set(flat) == {2 * sequence + token}
            assert heads.tolist() == [member, 3 + member, 6, 7, 8, 9]
            assert planned["grouped.positions"][sequence, row] == before + token
            seen = np.flatnonzero(planned["grouped.bias"][sequence, 0, row] == 0)
            assert seen.tolist() == list(range(before + token + 1))


def test_each_result_goes_back_to_its_token_and_head(plan: RowPlans) -> None:
    planned = plan(2, [12, 7])
    rows = planned["grouped.positions"].shape[1]
    sequence, row, kv_head = np.unravel_index(planned["grouped.back"], (2, rows, KV_HEADS))
    for flat in range(4):
        assert set(sequence[flat]) == {flat // 2}
        assert (row[flat] % 2).tolist() == [flat % 2] * HEADS
        assert (kv_head[flat] * 3 + row[flat] // 2).tolist() == list(range(HEADS))
