"""The end of an encoder's graph: from the hidden states to one vector for each text, or one score for each pair."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from gateway.builder.encoders.config import EncoderSource
from gateway.builder.encoders.nodes import EncoderNodes
from gateway.builder.encoders.pooling import Dense, SentenceSettings
from gateway.builder.graphs.writer import GraphWriter
from gateway.bundles.encoder.bundle import Pooling


class EndWriter:
    """Writes the pooling and the output."""

    def __init__(
        self,
        source: EncoderSource,
        graph: GraphWriter,
        nodes: EncoderNodes,
        settings: SentenceSettings,
        pooling: Pooling,
    ) -> None:
        self._source, self._config, self._graph, self._nodes = source, source.config, graph, nodes
        self._settings, self._pooling = settings, pooling

    def write(self, x: str) -> None:
        """Args: x: the hidden states (tokens, hidden); with the pooling "cls" (batch, hidden)."""
        self.write_pooled(self._pooled(x))

    def write_pooled(self, pooled: str) -> None:
        """Args: pooled: (texts, hidden)."""
        if self._config.is_cross_encoder:
            self._scores(pooled)
        else:
            self._vectors(pooled)

    def _pooled(self, x: str) -> str:
        """(batch, hidden)."""
        graph = self._graph
        if self._pooling == "cls":
            return x
        by_text = graph.node("Reshape", [x, "by_text"], "hidden_states")
        if self._pooling == "last":
            last = graph.node("Sub", ["lengths_column", self._nodes.ints(1)], "last_index")
            return graph.node("GatherND", [by_text, last], "pooled", batch_dims=1)
        inside = graph.node("Less", ["indices", "lengths_column"], "is_inside")
        if self._pooling == "max":
            column = graph.node("Unsqueeze", [inside, self._nodes.ints(2)], "inside_column")
            lowest = graph.constant("lowest", np.array(-1e30, np.float32))
            kept = graph.node("Where", [column, by_text, lowest], "kept")
            return graph.node("ReduceMax", [kept, self._nodes.ints(1)], "pooled", keepdims=0)
        weights = graph.node("Cast", [inside], "inside", to=TensorProto.FLOAT)
        weights = graph.node("Unsqueeze", [weights, self._nodes.ints(1)], "inside_row")  # (batch, 1, sequence)
        total = graph.node(
            "Squeeze", [graph.node("MatMul", [weights, by_text], "totals"), self._nodes.ints(1)], "total"
        )
        count = graph.node("Cast", ["lengths_column"], "counts", to=TensorProto.FLOAT)
        return graph.node("Div", [total, count], "pooled")

    def _vectors(self, pooled: str) -> None:
        for number, dense in enumerate(self._settings.dense):
            pooled = self._nodes.dense(f"dense.{number}", pooled, dense)
        if self._settings.normalised:
            self._graph.node("LpNormalization", [pooled], "vectors", axis=-1, p=2)
        else:
            self._graph.node("Identity", [pooled], "vectors")

    def _scores(self, pooled: str) -> None:
        graph, source = self._graph, self._source
        if source.has("head.dense.weight"):
            bias = source.tensor("head.dense.bias") if source.has("head.dense.bias") else None
            dense = Dense(weight=source.tensor("head.dense.weight"), bias=bias, activation=self._config.head_activation)
            pooled = self._nodes.dense("head.dense", pooled, dense)
        if source.has("head.norm.weight"):
            pooled = self._nodes.norm("head.norm", pooled)
        bias = source.tensor("head.out.bias") if source.has("head.out.bias") else None
        logits = self._nodes.dense(
            "head.out", pooled, Dense(weight=source.tensor("head.out.weight"), bias=bias, activation=None)
        )
        graph.node("Reshape", [graph.node("Sigmoid", [logits], "by_pair"), self._nodes.ints(-1)], "scores")
