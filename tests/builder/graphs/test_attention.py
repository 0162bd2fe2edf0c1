"""The nodes of `GroupPlanner`, run alone: which calls have the grouped layout, and which rows it plans.

That both layouts give the same bits is tested with whole decoders (tests/worker/decoders).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from msgspec.structs import replace
from onnx import TensorProto

from gateway.builder.graphs.attention import GroupPlanner
from gateway.builder.graphs.rows import RowPlanner
from gateway.builder.graphs.writer import GraphWriter
from gateway.builder.sources.detect import open_source
from gateway.worker.decoders.onnx import SessionOptions, open_session
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
Plan = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    folder: Path = tmp_path_factory.mktemp("attention")
    config = replace(open_source(write_tiny_folder(folder / "tiny")).config, heads=HEADS, kv_heads=KV_HEADS)
    with GraphWriter(folder / "rows.onnx") as graph:
        graph.input("input_ids", TensorProto.INT64, ["batch", "sequence"])
        graph.input("attention_mask", TensorProto.INT64, ["batch", "total"])
        graph.input("past_key_values.0.key", TensorProto.FLOAT, ["batch", 1, "capacity", 1])
        graph.input("logits_to_keep", TensorProto.INT64, [1])
        graph.input("row_multiple", TensorProto.INT64, [1])
        for name, kind in _OUTPUTS.items():
            graph.output(name, kind, [])
        RowPlanner(graph, 2 * config.head_dim).write()
        GroupPlanner(graph, config, half=False).write()
        graph.save("rows")
    return open_session(folder / "rows.onnx", SessionOptions(threads=1))


@pytest.fixture
def plan(session: ort.InferenceSession) -> Callable[..., Plan]:
    """Plan a call of `tokens` new tokens for each sequence, which then has `lengths` rows."""

    def run(tokens: int, lengths: Sequence[int], *, multiple: int = 1, capacity: int = 256) -> Plan:
        feeds = {
            "input_ids": np.zeros((len(lengths), tokens), np.int64),
            "attention_mask": (np.arange(200) < np.array(lengths)[:, None]).astype(np.int64),
            "past_key_values.0.key": np.zeros((len(lengths), 1, capacity, 1), np.float32),
            "logits_to_keep": np.array([1]),
            "row_multiple": np.array([multiple]),
        }
        return dict(zip(_OUTPUTS, session.run(list(_OUTPUTS), feeds), strict=True))

    return run


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
    plan: Callable[..., Plan], tokens: int, lengths: Sequence[int], capacity: int, is_grouped: bool
) -> None:
    planned = plan(tokens, lengths, capacity=capacity)
    assert planned["is_grouped"].tolist() == [is_grouped]
    assert bool(planned["grouped.bias"].size) is is_grouped


@pytest.mark.parametrize("multiple", [1, 2, 4])
def test_rows_have_the_heads_of_their_group_and_see_their_own_token(plan: Callable[..., Plan], multiple: int) -> None:
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


def test_each_result_goes_back_to_its_token_and_head(plan: Callable[..., Plan]) -> None:
    planned = plan(2, [12, 7])
    rows = planned["grouped.positions"].shape[1]
    sequence, row, kv_head = np.unravel_index(planned["grouped.back"], (2, rows, KV_HEADS))
    for flat in range(4):
        assert set(sequence[flat]) == {flat // 2}
        assert (row[flat] % 2).tolist() == [flat % 2] * HEADS
        assert (kv_head[flat] * 3 + row[flat] // 2).tolist() == list(range(HEADS))
