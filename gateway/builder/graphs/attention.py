"""Writes the attention of a CPU graph: `GroupQueryAttention` over the cache, in one of two layouts of the same numbers.

- *plain*: one row for each token, in all query heads. For a prompt.
- *grouped*: one row for each token and each query head of a group, in as many heads as the cache has. For few tokens.

The kernel prepares keys and values again for each of its heads, which costs more than the products of a few rows. So
with `group` query heads to a key-value head, the grouped layout takes 1 / group of the time. Its row g * tokens + t has
the g-th query head of each group for token t. The first `tokens` rows have the tokens' keys and values, the others
write rows behind the sequence, which a mask excludes and the next token overwrites. Both layouts give the same bits
(docs/log.md), so an `If` chooses by the number of tokens. If a cache has no free rows, the layout is plain.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from gateway.builder.graphs.writer import MICROSOFT, GraphWriter
from gateway.builder.sources.source import TransformerConfig

_MAX_TOKENS = 16  # of a sequence, in the grouped layout; up to 24 it is faster, with 64 it takes 1.1 times as long
_LENGTHS = ("seqlens_k", "total_sequence_length")


class AttentionWriter:
    """Args:
    half: True if the cache and the inputs of attention have half precision.
    """

    def __init__(self, graph: GraphWriter, config: TransformerConfig, *, half: bool) -> None:
        self._graph, self._config = graph, config
        self._half = half
        self._group = config.heads // config.kv_heads
        self._grouped = GroupPlanner(graph, config, half=half) if self._group > 1 else None

    def write_rows(self) -> None:
        """Write the nodes that all layers share. `RowPlanner` comes before."""
        if self._grouped:
            self._grouped.write()

    def write(self, index: int, qkv: str) -> str:
        """Write the attention of layer `index`.

        Args:
            qkv: float32 (flat, (heads + 2 * kv_heads) * head_dim).

        Returns: the name of float32 (flat, heads * head_dim).
        """
        graph, name = self._graph, f"layers.{index}.attended"
        rows = graph.node("Cast", [qkv], f"{qkv}.half", to=TensorProto.FLOAT16) if self._half else qkv
        element = TensorProto.FLOAT16 if self._half else TensorProto.FLOAT
        attended = f"{name}.half" if self._half else name
        outputs = [attended, f"present.{index}.key", f"present.{index}.value"]
        if self._grouped and not self._config.window(index):  # a window counts rows, not tokens
            grouped, plain = ([f"{output}.{layout}" for output in outputs] for layout in ("grouped", "plain"))
            graph.nodes(
                "If",
                ["is_grouped"],
                outputs,
                then_branch=graph.branch(grouped, element, lambda: self._write_grouped(index, rows, grouped)),
                else_branch=graph.branch(plain, element, lambda: self._write_plain(index, rows, plain)),
            )
        else:
            self._write_plain(index, rows, outputs)
        return graph.node("Cast", [attended], name, to=TensorProto.FLOAT) if self._half else name

    def _write_plain(self, index: int, rows: str, outputs: list[str]) -> None:
        graph, (attended, *present) = self._graph, outputs
        padded = graph.node("Gather", [rows, "padded"], f"{attended}.rows", axis=0)
        inputs = [padded, *_LENGTHS, "", "", "query_seqlens"]
        self._attention(index, self._config.heads, inputs, [f"{attended}.padded", *present])
        graph.node("GatherND", [f"{attended}.padded", "tokens_in_padded"], attended)

    def _write_grouped(self, index: int, rows: str, outputs: list[str]) -> None:
        graph, (attended, *present) = self._graph, outputs
        by_head = graph.constant("by_head", np.array([-1, self._config.head_dim]))
        joined, flat = (
            graph.constant("heads_joined", np.array([0, 0, -1])),
            graph.constant("heads_in_row", np.array([0, -1])),
        )
        heads = graph.node("Reshape", [rows, by_head], f"{attended}.heads")
        picked = graph.node("Gather", [heads, "grouped.heads"], f"{attended}.picked", axis=0)
        inputs = [
            graph.node("Reshape", [picked, joined], f"{attended}.rows"),
            *(f"grouped.{length}" for length in _LENGTHS),
            "grouped.positions",
            "grouped.bias",
            "grouped.query_seqlens",
        ]
        self._attention(index, self._config.kv_heads, inputs, [f"{attended}.out", *present])
        heads = graph.node("Reshape", [f"{attended}.out", by_head], f"{attended}.results")
        picked = graph.node("Gather", [heads, "grouped.back"], f"{attended}.by_token", axis=0)
        graph.node("Reshape", [picked, flat], attended)

    def _attention(self, index: int, heads: int, inputs: list[str], outputs: list[str]) -> None:
        config = self._config
        rows, last, total, positions, bias, queries = inputs
        past = [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
        kind = config.rope_kind(index)
        tables = ["", ""] if kind is None else rope_tables(kind)
        options: dict[str, int | float] = {}
        if config.attention_scale:
            options["scale"] = config.attention_scale
        if config.window(index):
            options["local_window_size"] = config.window(index)
        self._graph.nodes(
            "GroupQueryAttention",
            [
                rows,
                "",
                "",
                *past,
                last,
                total,
                *tables,
                positions if kind is not None else "",
                bias,
                *[""] * 5,
                queries,
            ],
            outputs,
            domain=MICROSOFT,
            num_heads=heads,
            kv_num_heads=config.kv_heads,
            do_rotary=int(kind is not None),
            **options,
        )


class GroupPlanner:
    """Writes nodes that depend only on the shapes, the mask and `row_multiple`. The grouped layout uses:

    is_grouped bool (1,)                      which layout the call has
    grouped.heads (batch, rows, 3 * kv_heads) the flat row and head of each query, key and value
    grouped.back (flat, heads)                the result of each flat row and head
    grouped.positions (batch, rows)           for the rotation
    grouped.bias (batch, 1, rows, total)      0, or minus infinity for a key behind the token
    and attention's inputs seqlens_k, query_seqlens, total_sequence_length, with the prefix `grouped.`

    If the layout is plain, these have no rows.
    """

    def __init__(self, graph: GraphWriter, config: TransformerConfig, *, half: bool) -> None:
        self._graph, self._half = graph, half
        self._heads, self._kv_heads = config.heads, config.kv_heads
        self._group = self._heads // self._kv_heads
        self._limit = min(_MAX_TOKENS, (2 * config.head_dim - 4) // self._group)  # in one block of queries
        self._zero, self._one = graph.constant("zero", np.array([0])), graph.constant("one", np.array([1]))

    def write(self) -> None:
        graph = self._graph
        before = graph.node("Sub", ["ones", "sequence_length"], "grouped.before")  # (batch,)
        rows = graph.node("Mul", ["sequence_length", self._number("group", self._group)], "grouped.token_rows")
        ends = graph.node("Add", [before, rows], "grouped.ends")
        missing = graph.node("Mod", [graph.node("Neg", [ends], "grouped.past_end"), "row_multiple"], "grouped.missing")
        queries = graph.node("Add", [missing, rows], "grouped.queries")
        lengths = graph.node("Add", [before, queries], "grouped.lengths")
        is_grouped = graph.node("Cast", [self._choice(before, lengths)], "grouped.flag", to=TensorProto.INT64)
        total = graph.node(
            "Mul", [graph.node("ReduceMax", [lengths, self._zero], "grouped.end"), is_grouped], "grouped.total"
        )
        for name, value in (
            ("seqlens_k", graph.node("Sub", [lengths, self._one], "grouped.last")),
            ("query_seqlens", queries),
            ("total_sequence_length", total),
        ):
            graph.node("Cast", [value], f"grouped.{name}", to=TensorProto.INT32)
        count = graph.node("ReduceMax", [queries, self._zero], "grouped.most_rows")
        self._rows(before, graph.node("Mul", [count, is_grouped], "grouped.count"), total)
        self._results(count)

    def _choice(self, before: str, lengths: str) -> str:
        """Few tokens, no mask that is shorter than them, and free rows in the cache."""
        graph = self._graph
        few = graph.node("LessOrEqual", ["sequence_length", self._number("limit", self._limit)], "grouped.few")
        first = graph.node("ReduceMin", [before, self._zero], "grouped.first")
        known = graph.node("GreaterOrEqual", [first, self._zero], "grouped.known")
        longest = graph.node("ReduceMax", [lengths, self._zero], "grouped.longest")
        fits = graph.node("LessOrEqual", [longest, "capacity_rows"], "grouped.fits")
        return graph.node("And", [graph.node("And", [few, known], "grouped.possible"), fits], "is_grouped")

    def _rows(self, before: str, count: str, total: str) -> None:
        """The content of the rows, their positions and their mask."""
        graph = self._graph
        rows = self._range(count, "grouped.rows")
        token = graph.node("Mod", [rows, "sequence_length"], "grouped.token")
        member = graph.node("Div", [rows, "sequence_length"], "grouped.any_member")
        member = graph.node("Min", [member, self._number("last_member", self._group - 1)], "grouped.member")
        # heads of a flat row: queries, keys, values
        queries = np.arange(self._kv_heads) * self._group
        others = np.arange(self._heads, self._heads + 2 * self._kv_heads)
        first = graph.constant("grouped.first_heads", np.concatenate([queries, others]))
        moves = graph.constant("grouped.is_query", (np.arange(3 * self._kv_heads) < self._kv_heads).astype(np.int64))
        offset = graph.node("Mul", [self._column(member, "grouped.members"), moves], "grouped.offset")
        head = graph.node("Add", [first, offset], "grouped.head")  # (rows, 3 * kv_heads)
        flat = graph.node("Gather", ["row_numbers", token], "grouped.flat", axis=1)  # (batch, rows)
        flat = graph.node(
            "Mul", [flat, self._number("heads_of_row", self._heads + 2 * self._kv_heads)], "grouped.flat_heads"
        )
        graph.node("Add", [self._column(flat, "grouped.flat_column"), head], "grouped.heads")
        positions = graph.node("Add", [self._column(before, "grouped.befores"), token], "grouped.positions")
        seen = graph.node(
            "LessOrEqual", [self._range(total, "grouped.keys"), self._column(positions, "grouped.each")], "grouped.seen"
        )
        dtype = np.float16 if self._half else np.float32
        none, hidden = graph.constant("grouped.none", np.zeros(1, dtype)), np.full(1, -np.inf, dtype)
        bias = graph.node("Where", [seen, none, graph.constant("grouped.hidden", hidden)], "grouped.biases")
        graph.node("Unsqueeze", [bias, self._one], "grouped.bias")

    def _results(self, count: str) -> None:
        """Where the result of each flat row and head is, among (batch, rows, kv_heads)."""
        graph = self._graph
        sequence, token = graph.nodes(
            "Split", ["tokens_in_padded"], ["grouped.sequence", "grouped.token_of"], axis=1, num_outputs=2
        )
        first = graph.node("Add", [graph.node("Mul", [sequence, count], "grouped.starts"), token], "grouped.first_row")
        heads = np.arange(self._heads)
        member = graph.constant("grouped.member_of", heads % self._group)
        row = graph.node("Add", [first, graph.node("Mul", [member, "sequence_length"], "grouped.down")], "grouped.row")
        row = graph.node("Mul", [row, self._number("kv_heads", self._kv_heads)], "grouped.row_heads")
        graph.node("Add", [row, graph.constant("grouped.kv_head", heads // self._group)], "grouped.back")

    def _range(self, count: str, output: str) -> str:
        end = self._graph.node("Squeeze", [count], f"{output}.end")
        first, step = self._graph.constant("first", np.array(0)), self._graph.constant("step", np.array(1))
        return self._graph.node("Range", [first, end, step], output)

    def _column(self, value: str, output: str) -> str:
        return self._graph.node("Unsqueeze", [value, self._graph.constant("minus_one", np.array([-1]))], output)

    def _number(self, name: str, value: int) -> str:
        return self._graph.constant(f"grouped.{name}", np.array([value]))


def rope_tables(kind: int) -> list[str]:
    """The names of the cosines and sines of a kind of rotary positions."""
    name = f"rope{kind}" if kind else "rope"
    return [f"{name}.cos", f"{name}.sin"]
