"""Groups of nodes that all parts of an encoder's graph use: norms, biases, activations, integers."""

from __future__ import annotations

import numpy as np

from gateway.builder.encoders.config import Activation, EncoderSource
from gateway.builder.encoders.pooling import Dense
from gateway.builder.graphs.writer import MICROSOFT, GraphWriter


class EncoderNodes:
    """Methods take and return the names of values."""

    def __init__(self, source: EncoderSource, graph: GraphWriter) -> None:
        self._source, self._config, self._graph = source, source.config, graph

    def activated(self, kind: Activation, x: str, bias: str) -> str:
        graph, name = self._graph, f"{x}.active"
        has_bias = bool(bias) and self._source.has(bias)
        if kind in ("gelu", "gelu_tanh") and has_bias:
            fused = "BiasGelu" if kind == "gelu" else "FastGelu"
            return graph.node(fused, [x, graph.constant(bias, self._source.tensor(bias))], name, domain=MICROSOFT)
        if has_bias:
            x = self.with_bias(x, bias)
        match kind:
            case "gelu":
                return graph.node("Gelu", [x], name, domain=MICROSOFT)
            case "gelu_tanh":
                return graph.node("FastGelu", [x], name, domain=MICROSOFT)
            case "silu":
                return graph.node("QuickGelu", [x], name, domain=MICROSOFT, alpha=1.0)
            case _:
                return graph.node({"relu": "Relu", "tanh": "Tanh"}[kind], [x], name)

    def with_bias(self, x: str, bias: str) -> str:
        if not self._source.has(bias):
            return x
        return self._graph.node("Add", [x, self._graph.constant(bias, self._source.tensor(bias))], f"{x}.biased")

    def norm(self, name: str, x: str) -> str:
        kind = "LayerNormalization" if self._config.norm_kind == "layer" else "SimplifiedLayerNormalization"
        return self._graph.node(kind, [x, *self.norm_weights(name)], f"{name}.x", axis=-1, epsilon=self._config.eps)

    def added_norm(self, name: str, delta: str, x: str, bias: str = "") -> tuple[str, str]:
        """The norm of the sum, and the sum. Separate nodes: SkipLayerNormalization takes three times as long."""
        total = self._graph.node("Add", [self.with_bias(delta, bias) if bias else delta, x], f"{name}.sum")
        return self.norm(name, total), total

    def norm_weights(self, name: str) -> list[str]:
        kinds = [kind for kind in ("weight", "bias") if self._source.has(f"{name}.{kind}")]
        return [self._graph.constant(f"{name}.{kind}", self._source.tensor(f"{name}.{kind}")) for kind in kinds]

    def rope_tables(self, i: int, positions: int, halves: int = 1) -> list[str]:
        """Cosine and sine of layer i, (positions, halves * head size / 2)."""
        rope = self._config.ropes[i]
        name = f"rope_{self._config.ropes.index(rope)}_{positions}"
        tables = zip(("cos", "sin"), rope.tables(positions, positions), strict=True)
        return [
            self._graph.constant(f"{name}.{part}", np.tile(values, halves).astype(np.float32))
            for part, values in tables
        ]

    def number(self, name: str, value: int) -> str:
        return self._graph.constant(name, np.array(value, np.int64))

    def int64(self, name: str, values: list[int]) -> str:
        return self._graph.constant(name, np.array(values, np.int64))

    def ints(self, *values: int) -> str:
        return self._graph.constant("_".join(["ints", *map(str, values)]), np.array(values, np.int64))

    def dense(self, name: str, x: str, dense: Dense) -> str:
        graph = self._graph
        inputs = [x, graph.constant(f"{name}.weight", dense.weight)]
        if dense.bias is not None:
            inputs.append(graph.constant(f"{name}.bias", dense.bias))
        y = graph.node("Gemm", inputs, f"{name}.linear", transB=1)
        return self.activated(dense.activation, y, "") if dense.activation else y
