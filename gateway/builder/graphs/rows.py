"""Writes the nodes of a CPU graph that decide which rows it computes: the tokens' rows, and padding rows.

Two layouts of rows:

- *flat*, for everything but attention: the tokens' rows (batch * sequence), then padding rows
- *by sequence*, for attention (batch, rows): each sequence's tokens, then padding rows that end it at a multiple
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from gateway.builder.graphs.writer import GraphWriter

MAX_MULTIPLE = 4  # of the input `row_multiple`
MAX_PADDING_ROWS = 2 * MAX_MULTIPLE - 1  # of a sequence: up to the multiple, and a multiple more


class RowPlanner:
    """Writes nodes that depend only on the shapes, the mask and `row_multiple`. The rest of the graph uses:

    ids (flat,)                 the token ids; a padding row has id 0
    padded (batch, rows)        the flat row of each of attention's rows
    tokens_in_padded (flat, 2)  attention's row of each flat row; a padding row has any
    kept_rows (kept flat,)      the flat rows whose logits are kept, then padding rows
    kept_count (1,)             the number of rows in it that are not padding
    batch_size (1,) and attention's inputs seqlens_k, query_seqlens, total_sequence_length

    Args:
        block: the largest number of queries that attention computes together.
    """

    def __init__(self, graph: GraphWriter, block: int) -> None:
        self._graph = graph
        self._block = graph.constant("attention_block", np.array([block]))
        self._zero, self._one = graph.constant("zero", np.array([0])), graph.constant("one", np.array([1]))
        self._flat = graph.constant("rest", np.array([-1]))

    def write(self) -> None:
        graph = self._graph
        batch = graph.node("Shape", ["input_ids"], "batch_size", end=1)
        tokens = graph.node("Shape", ["input_ids"], "sequence_length", start=1)
        sizes = graph.node("Concat", [batch, tokens], "sizes", axis=0)
        self._sequences(tokens)
        self._flat_rows(sizes)
        self._kept_rows()

    def _sequences(self, tokens: str) -> None:
        """The rows of each sequence in attention."""
        graph = self._graph
        ones = graph.node("ReduceSum", ["attention_mask", self._one], "ones", keepdims=0)
        padding = self._padding_rows(tokens, ones)
        lengths = graph.node("Add", [ones, padding], "padded_lengths")
        queries = graph.node("Add", [graph.node("Min", [tokens, ones], "valid"), padding], "queries")
        longest = graph.node("ReduceMax", [lengths, self._zero], "longest")
        width = graph.node("Shape", ["attention_mask"], "width", start=1)
        total = graph.node("Max", [width, longest], "total")
        graph.node("Cast", [graph.node("Sub", [lengths, self._one], "last")], "seqlens_k", to=TensorProto.INT32)
        graph.node("Cast", [queries], "query_seqlens", to=TensorProto.INT32)
        graph.node("Cast", [total], "total_sequence_length", to=TensorProto.INT32)
        graph.node("ReduceMax", [padding, self._zero], "most_padding_rows")

    def _padding_rows(self, tokens: str, ones: str) -> str:
        """(batch,): up to the next multiple; a multiple more if a row is alone in its block. 0 if they do not fit."""
        graph = self._graph
        missing = self._up_to_multiple(ones, "missing_rows")
        rows = graph.node("Add", [tokens, missing], "rows")
        in_block = graph.node("Mod", [rows, self._block], "rows_in_last_block")
        alone = graph.node(
            "Cast", [graph.node("Equal", [in_block, self._one], "alone")], "is_alone", to=TensorProto.INT64
        )
        wanted = graph.node("Add", [missing, graph.node("Mul", [alone, "row_multiple"], "more_rows")], "wanted_rows")
        capacity = graph.node("Shape", ["past_key_values.0.key"], "capacity_rows", start=2, end=3)
        needed = graph.node("ReduceMax", [graph.node("Add", [ones, wanted], "wanted_lengths"), self._zero], "needed")
        fits = graph.node("LessOrEqual", [needed, capacity], "fits")
        return graph.node("Mul", [wanted, graph.node("Cast", [fits], "has_rows", to=TensorProto.INT64)], "padding_rows")

    def _flat_rows(self, sizes: str) -> None:
        """The tokens of all sequences, and the order of rows in both layouts."""
        graph = self._graph
        graph.node("Pad", [graph.node("Reshape", ["input_ids", self._flat], "tokens"), self._padding("tokens")], "ids")
        count = graph.node("Size", ["input_ids"], "count")
        first, step = graph.constant("first", np.array(0)), graph.constant("step", np.array(1))
        rows = graph.node("Reshape", [graph.node("Range", [first, count, step], "numbers"), sizes], "row_numbers")
        none = graph.constant("no_padding_row", np.zeros(3, np.int64))
        more = graph.node("Concat", [none, "most_padding_rows"], "more_in_sequence", axis=0)
        graph.node("Pad", [rows, more], "padded", mode="edge")
        each = graph.node("ConstantOfShape", [sizes], "each", value=numpy_helper.from_array(np.array([1])))
        indices = graph.node("Transpose", [graph.node("NonZero", [each], "indices")], "token_indices")
        two = graph.constant("no_row_before", np.zeros(2, np.int64))
        more = graph.node("Concat", [two, "tokens.missing", self._zero], "more_indices", axis=0)
        graph.node("Pad", [indices, more], "tokens_in_padded")

    def _kept_rows(self) -> None:
        """The last `logits_to_keep` rows of each sequence. A slice from -0 is all rows."""
        graph = self._graph
        start = graph.node("Neg", ["logits_to_keep"], "kept_from")
        end = graph.constant("to_end", np.array([np.iinfo(np.int64).max]))
        kept = graph.node("Slice", ["row_numbers", start, end, self._one], "kept_by_sequence")
        kept = graph.node("Reshape", [kept, self._flat], "kept")
        graph.node("Pad", [kept, self._padding("kept")], "kept_rows")
        graph.node("Shape", ["kept"], "kept_count")

    def _padding(self, rows: str) -> str:
        """For `Pad`: rows behind the vector `rows`, up to the next multiple."""
        missing = self._up_to_multiple(self._graph.node("Shape", [rows], f"{rows}.count"), f"{rows}.missing")
        return self._graph.node("Concat", [self._zero, missing], f"{rows}.padding", axis=0)

    def _up_to_multiple(self, count: str, output: str) -> str:
        return self._graph.node("Mod", [self._graph.node("Neg", [count], f"{output}.neg"), "row_multiple"], output)
