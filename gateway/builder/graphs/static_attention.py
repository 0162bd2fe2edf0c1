"""Writes attention in graphs of fixed shape, in one float type.

The NPU accepts `GroupQueryAttention` with a scale and without rotation. It refuses the operator with a window, and
computes it wrongly if only some dimensions of a head are rotated. So those layers are single operators:

    cache = ScatterElements(past, rows of the tokens)
    y = Softmax(rope(q) * scale · cacheᵀ + mask) · cache        mask: 0 for the positions that are seen, else -10000

The mask comes from `past_seq_len`, so the inputs are the same for all models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from gateway.builder.graphs.static_products import Float
from gateway.builder.graphs.writer import MICROSOFT, Dimension, GraphWriter
from gateway.builder.sources.source import TransformerConfig

_UNSEEN = -10000.0  # the usual minimum of float32 is no float16


class Attention:
    """The attention of all layers in a graph. Dynamic dimensions: "context", and for one sequence "width", its tokens.

    Args:
        context: the longest context of the graph.
        sequences: see `write_part`.
    """

    def __init__(
        self,
        graph: GraphWriter,
        config: TransformerConfig,
        dtype: Float,
        *,
        context: int,
        sequences: int,
    ) -> None:
        self._graph = graph
        self._config = config
        self._dtype = dtype
        self._float = TensorProto.FLOAT if dtype is np.float32 else TensorProto.FLOAT16
        self._context = context
        self._sequences = sequences
        self._shared: dict[str, str] = {}

    def write(self, index: int, q: str, k: str, v: str) -> str:
        """Attention of a layer: q, k, v (1, rows, columns) -> (1, rows, heads * head_dim). Declares its cache."""
        config, graph = self._config, self._graph
        cache: list[Dimension] = [self._sequences, config.kv_heads, "context", config.head_dim]
        past = [f"past_keys_{index}", f"past_values_{index}"]
        present = [f"present_keys_{index}", f"present_values_{index}"]
        for before, after in zip(past, present, strict=True):
            graph.input(before, self._float, cache)
            graph.output(after, self._float, cache)
        write = self._fused if self._is_fused(index) else self._in_nodes
        return write(index, (q, k, v), past, present)

    def _is_fused(self, index: int) -> bool:
        config, kind = self._config, self._config.rope_kind(index)
        is_whole = kind is None or config.ropes[kind].dim == config.head_dim
        return is_whole and not 0 < config.window(index) < self._context

    def _fused(self, index: int, qkv: tuple[str, str, str], past: list[str], present: list[str]) -> str:
        config, kind = self._config, self._config.rope_kind(index)
        heads = (config.heads, config.kv_heads, config.kv_heads)
        inputs = [self._by_sequence(x, count * config.head_dim) for x, count in zip(qkv, heads, strict=True)]
        tables = self._tables(kind) if kind is not None else []
        attended, together = f"layers.{index}.attended", self._sequences > 1
        y = f"{attended}.by_sequence" if together else attended
        scale = {"scale": config.attention_scale} if config.attention_scale else {}
        self._graph.nodes(
            "GroupQueryAttention",
            [*inputs, *past, self._once("last_row", self._last_row), "total_seq_len", *tables],
            [y, *present],
            domain=MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.kv_heads,
            do_rotary=int(bool(tables)),
            **scale,
        )
        return self._reshaped(y, attended, 1, self._sequences, config.heads * config.head_dim) if together else y

    def _by_sequence(self, value: str, columns: int) -> str:
        """(1, sequences, columns) -> (sequences, 1, columns). Returns `value` itself for one sequence."""
        if self._sequences == 1:
            return value
        return self._reshaped(value, f"{value}.by_sequence", self._sequences, 1, columns)

    def _last_row(self, name: str) -> str:
        return self._reshaped("past_seq_len", name, -1)

    def _in_nodes(self, index: int, qkv: tuple[str, str, str], past: list[str], present: list[str]) -> str:
        graph, config, name = self._graph, self._config, f"layers.{index}.attention"
        query, key, value = (
            self._heads(x, count)
            for x, count in zip(qkv, (config.heads, config.kv_heads, config.kv_heads), strict=True)
        )
        query, key = self._rotated(query, index), self._rotated(key, index)
        written = self._once("written_rows", self._written_rows)
        for before, new, after in zip(past, (key, value), present, strict=True):
            graph.node("ScatterElements", [before, written, new], after, axis=2)
        scale = graph.constant("attention.scale", np.array(self._scale, self._dtype))
        query = graph.node("Mul", [query, scale], f"{name}.query")
        query = self._reshaped(query, f"{name}.by_group", self._sequences, config.kv_heads, -1, config.head_dim)
        keys = graph.node("Transpose", [present[0]], f"{name}.keys", perm=[0, 1, 3, 2])
        scores = graph.node("MatMul", [query, keys], f"{name}.scores")
        window = config.window(index)
        mask = self._once(f"mask.{window}", lambda mask: self._mask(mask, window))
        weights = graph.node("Softmax", [graph.node("Add", [scores, mask], f"{name}.seen")], f"{name}.weights", axis=-1)
        y = graph.node("MatMul", [weights, present[1]], f"{name}.values")
        y = self._reshaped(y, f"{name}.by_head", self._sequences, config.heads, -1, config.head_dim)
        y = graph.node("Transpose", [y], f"{name}.by_token", perm=[0, 2, 1, 3])
        return self._reshaped(y, f"layers.{index}.attended", 1, -1, config.heads * config.head_dim)

    @property
    def _scale(self) -> float:
        return self._config.attention_scale or self._config.head_dim**-0.5

    def _heads(self, x: str, count: int) -> str:
        """(1, rows, count * head_dim) -> (sequences, count, tokens, head_dim)"""
        split = self._reshaped(x, f"{x}.heads", self._sequences, -1, count, self._config.head_dim)
        return self._graph.node("Transpose", [split], f"{x}.by_head", perm=[0, 2, 1, 3])

    def _rotated(self, x: str, index: int) -> str:
        """x (sequences, heads, tokens, head_dim) at its positions."""
        kind = self._config.rope_kind(index)
        if kind is None:
            return x
        graph, dim = self._graph, self._config.ropes[kind].dim
        parts = [f"{x}.first", f"{x}.second"]
        rest = self._config.head_dim - dim
        sizes = graph.constant(f"rope{kind}.sizes", np.array([dim // 2, dim // 2, rest][: 3 if rest else 2]))
        first, second, *others = graph.nodes("Split", [x, sizes], [*parts, f"{x}.rest"][: 3 if rest else 2], axis=-1)
        cos, sin = (self._at_positions(table, dim // 2) for table in self._tables(kind))
        turned = [
            graph.node(
                kind,
                [graph.node("Mul", [a, cos], f"{a}.cos"), graph.node("Mul", [b, sin], f"{b}.sin")],
                f"{a}.turned",
            )
            for kind, a, b in (("Sub", first, second), ("Add", second, first))
        ]
        return graph.node("Concat", [*turned, *others], f"{x}.rotated", axis=-1)

    def _tables(self, kind: int) -> list[str]:
        """Cosine and sine, (context, dim / 2)."""
        names = [f"rope{kind}.cos", f"rope{kind}.sin"]
        tables = self._config.ropes[kind].tables(self._context, self._context)
        return [
            self._graph.constant(name, table.astype(self._dtype)) for name, table in zip(names, tables, strict=True)
        ]

    def _at_positions(self, table: str, columns: int) -> str:
        """The table's rows for the tokens, (sequences, 1, tokens, columns)."""

        def gather(name: str) -> str:
            flat = self._once("flat_positions", lambda flat: self._reshaped(self._positions(), flat, -1))
            rows = self._graph.node("Gather", [table, flat], f"{name}.rows", axis=0)
            return self._reshaped(rows, name, self._sequences, 1, -1, columns)

        return self._once(f"{table}.of_tokens", gather)

    def _positions(self) -> str:
        """The cache row of each token, int32 (sequences, tokens)."""

        def add(name: str) -> str:
            offsets = self._graph.sized_constant("offsets", self._offsets)
            return self._graph.node("Add", ["past_seq_len", offsets], name)

        return self._once("positions", add)

    def _written_rows(self, name: str) -> str:
        config = self._config
        rows = self._reshaped(self._positions(), f"{name}.column", self._sequences, 1, -1, 1)
        shape = self._graph.constant(f"{name}.shape", np.array([self._sequences, config.kv_heads, 1, config.head_dim]))
        return self._graph.node("Expand", [rows, shape], name)

    def _mask(self, name: str, window: int) -> str:
        """(sequences, 1, tokens of all heads of a group, context)"""
        graph, group = self._graph, self._config.heads // self._config.kv_heads
        rows = graph.node("Concat", [self._positions()] * group, f"{name}.rows", axis=1)
        rows = self._reshaped(rows, f"{name}.column", self._sequences, 1, -1, 1)
        columns = graph.sized_constant("columns", lambda sizes: np.arange(sizes["context"], dtype=np.int32))
        distance = graph.node("Sub", [rows, columns], f"{name}.distance")
        zero = graph.constant("no_distance", np.array(0, np.int32))
        seen = graph.node("GreaterOrEqual", [distance, zero], f"{name}.not_after")
        if window:
            near = graph.node(
                "Less", [distance, graph.constant(f"{name}.window", np.array(window, np.int32))], f"{name}.near"
            )
            seen = graph.node("And", [seen, near], f"{name}.seen")
        values = {"seen": 0.0, "unseen": _UNSEEN}
        named = [graph.constant(f"mask.{kind}", np.array(value, self._dtype)) for kind, value in values.items()]
        return graph.node("Where", [seen, *named], name)

    def _offsets(self, sizes: Any) -> Any:
        width = sizes.get("width", 1) if self._sequences == 1 else 1
        return np.arange(1 - width, 1, dtype=np.int32)[None]

    def _reshaped(self, value: str, name: str, *shape: int) -> str:
        target = self._graph.constant("_".join(["shape", *map(str, shape)]), np.array(shape))
        return self._graph.node("Reshape", [value, target], name)

    def _once(self, name: str, write: Callable[[str], str]) -> str:
        """The value `name`, which several layers share."""
        if name not in self._shared:
            self._shared[name] = write(name)
        return self._shared[name]
