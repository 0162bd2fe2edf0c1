"""The nodes of `RowPlanner`, run alone: which rows they plan for given tokens, lengths and free rows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from onnx import TensorProto

from gateway.builder.graphs.rows import MAX_PADDING_ROWS, RowPlanner
from tests.support.row_plans import RowPlans

BLOCK = 32
_OUTPUTS = {
    "ids": TensorProto.INT64,
    "padded": TensorProto.INT64,
    "tokens_in_padded": TensorProto.INT64,
    "kept_rows": TensorProto.INT64,
    "kept_count": TensorProto.INT64,
    "seqlens_k": TensorProto.INT32,
    "query_seqlens": TensorProto.INT32,
    "total_sequence_length": TensorProto.INT32,
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RowPlans:
    path = tmp_path_factory.mktemp("rows") / "rows.onnx"
    return RowPlans(path, _OUTPUTS, lambda graph: RowPlanner(graph, BLOCK).write())


@pytest.mark.parametrize("multiple", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 30, 32, 33, 64])
@pytest.mark.parametrize("before", [(0,), (7,), (0, 3, 10, 90)], ids=str)
def test_rows_and_sequences_end_at_a_multiple_and_no_row_is_alone(
    plan: RowPlans, multiple: int, tokens: int, before: Sequence[int]
) -> None:
    lengths = [length + tokens for length in before]
    planned = plan(tokens, lengths, multiple=multiple)
    ends, queries = planned["seqlens_k"] + 1, planned["query_seqlens"]
    assert not (ends % multiple).any() and not (queries % BLOCK == 1).any()
    assert (ends - queries).tolist() == list(before)
    assert (ends - lengths).max() <= MAX_PADDING_ROWS
    assert len(planned["ids"]) % multiple == 0 == len(planned["kept_rows"]) % multiple
    assert len(planned["ids"]) < len(lengths) * tokens + multiple
    assert planned["padded"].shape == (len(lengths), queries.max())


@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_tokens_keep_their_order_in_both_layouts(plan: RowPlans, multiple: int) -> None:
    planned = plan(3, [5, 9, 3], multiple=multiple)
    assert planned["ids"][:9].tolist() == list(range(100, 109))
    there_and_back = planned["padded"][tuple(planned["tokens_in_padded"].T)]
    assert there_and_back[:9].tolist() == list(range(9))


@pytest.mark.parametrize(("keep", "rows"), [(1, [2, 5]), (2, [1, 2, 4, 5]), (0, [0, 1, 2, 3, 4, 5])])
def test_kept_rows_are_the_last_of_each_sequence(plan: RowPlans, keep: int, rows: list[int]) -> None:
    planned = plan(3, [5, 9], multiple=4, keep=keep)
    assert planned["kept_count"].tolist() == [len(rows)]
    assert planned["kept_rows"][: len(rows)].tolist() == rows


def test_multiple_of_one_pads_only_a_row_alone(plan: RowPlans) -> None:
    assert plan(1, [5], multiple=1)["query_seqlens"].tolist() == [2]
    assert plan(2, [5], multiple=1)["query_seqlens"].tolist() == [2]
    assert plan(33, [40], multiple=1)["query_seqlens"].tolist() == [34]
    assert len(plan(1, [5], multiple=1)["ids"]) == 1


@pytest.mark.parametrize("multiple", [1, 4])
def test_attention_has_no_padding_rows_in_a_full_cache(plan: RowPlans, multiple: int) -> None:
    planned = plan(1, [5, 17], multiple=multiple, capacity=17)
    assert planned["query_seqlens"].tolist() == [1, 1]
    assert planned["seqlens_k"].tolist() == [4, 16]


def test_total_length_contains_padding_rows_behind_the_mask(plan: RowPlans) -> None:
    assert plan(1, [199], multiple=4)["total_sequence_length"].tolist() == [200]
    assert plan(1, [200], multiple=4)["total_sequence_length"].tolist() == [204]
