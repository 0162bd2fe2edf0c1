"""The attention of one layer of an encoder: both ways with ONNX Runtime's MultiHeadAttention, or causal."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from gateway.builder.encoders.config import EncoderSource
from gateway.builder.encoders.linear import Linear
from gateway.builder.encoders.nodes import EncoderNodes
from gateway.builder.graphs.writer import MICROSOFT, GraphWriter


class AttentionWriter:
    """Args:
    longest: tokens of a text.
    """

    def __init__(
        self, source: EncoderSource, graph: GraphWriter, linear: Linear, nodes: EncoderNodes, longest: int
    ) -> None:
        self._source, self._config, self._graph = source, source.config, graph
        self._linear, self._nodes, self._longest = linear, nodes, longest
        self._made: set[str] = set()  # values that several layers use

    def write(self, i: int, x: str) -> str:
        """The attended rows (tokens, heads * size), before the output product."""
        graph, config, source = self._graph, self._config, self._source
        q, k, v = (self._linear.product(f"{i}.{each}", x, source.tensor(f"{i}.{each}.weight")) for each in "qkv")
        bias = ""
        has_bias = source.has(f"{i}.q.bias")
        if has_bias and config.ropes:
            q, k, v = (self._nodes.with_bias(each, f"{each}.bias") for each in (q, k, v))
        elif has_bias:
            parts = [source.tensor(f"{i}.{each}.bias") for each in "qkv"]
            bias = graph.constant(f"{i}.qkv.bias", np.concatenate(parts))
        sizes = (config.heads, config.key_heads, config.key_heads)
        q, k, v = (self._by_text(each, heads) for each, heads in zip((q, k, v), sizes, strict=True))
        if source.has(f"{i}.q_norm.weight"):
            q, k = self._head_norm(f"{i}.q_norm", q, config.heads), self._head_norm(f"{i}.k_norm", k, config.key_heads)
        attended = self._causal(i, q, k, v) if config.causal else self._both_ways(i, q, k, v, bias)
        return graph.node(
            "Reshape", [attended, self._nodes.ints(-1, config.heads * config.head_size)], f"{attended}.rows"
        )

    def _both_ways(self, i: int, q: str, k: str, v: str, bias: str) -> str:
        graph, config = self._graph, self._config
        if config.ropes:
            cos, sin = self._nodes.rope_tables(i, self._longest)
            q, k = (
                graph.node(
                    "RotaryEmbedding",
                    [each, self._nodes.int64("offset", [0]), cos, sin],
                    f"{each}.rotated",
                    domain=MICROSOFT,
                    num_heads=config.heads,
                )
                for each in (q, k)
            )
        window = config.windows[i] if config.windows else 0
        inputs = [q, k, v, bias, "key_lengths", *([self._window(window)] if window else [])]
        return graph.node("MultiHeadAttention", inputs, f"{i}.attended", domain=MICROSOFT, num_heads=config.heads)

    def _causal(self, i: int, q: str, k: str, v: str) -> str:
        graph, config = self._graph, self._config
        one = graph.constant("one_int32", np.array([1], np.int32))
        last = graph.node("Sub", ["key_lengths", one], f"{i}.last_keys")
        total = graph.node("Cast", ["width"], f"{i}.total", to=TensorProto.INT32)
        name = f"{i}.attended"
        graph.nodes(
            "GroupQueryAttention",
            [q, k, v, "", "", last, total, *self._nodes.rope_tables(i, self._longest)],
            [name, f"{i}.present_key", f"{i}.present_value"],
            domain=MICROSOFT,
            num_heads=config.heads,
            kv_num_heads=config.key_heads,
            do_rotary=1,
        )
        return name

    def _window(self, window: int) -> str:
        """(1, 1, sequence, sequence): 0 for tokens that see each other, else a large negative number."""
        name = f"window_{window}"
        if name in self._made:
            return name
        self._made.add(name)
        graph = self._graph
        column = graph.node("Unsqueeze", ["indices", self._nodes.ints(1)], f"{name}.column")
        distance = graph.node("Abs", [graph.node("Sub", [column, "indices"], f"{name}.difference")], f"{name}.distance")
        is_far = graph.node("Greater", [distance, self._nodes.number(f"{name}.limit", window)], f"{name}.is_far")
        far = graph.constant("far", np.array(-10000, np.float32))
        near = graph.constant("near", np.array(0, np.float32))
        mask = graph.node("Where", [is_far, far, near], f"{name}.mask")
        return graph.node("Unsqueeze", [mask, self._nodes.ints(0, 1)], name)

    def _by_text(self, x: str, heads: int) -> str:
        size = heads * self._config.head_size
        shape = f"by_text_{size}"
        if shape not in self._made:
            self._made.add(shape)
            self._graph.node("Concat", ["batch", "sequence", self._nodes.ints(size)], shape, axis=0)
        return self._graph.node("Reshape", [x, shape], f"{x}.by_text")

    def _head_norm(self, name: str, x: str, heads: int) -> str:
        graph, size = self._graph, self._config.head_size
        by_head = graph.node("Reshape", [x, self._nodes.ints(-1, size)], f"{name}.by_head")
        normed = self._nodes.norm(name, by_head)
        return graph.node("Reshape", [normed, f"by_text_{heads * size}"], f"{name}.by_text")
