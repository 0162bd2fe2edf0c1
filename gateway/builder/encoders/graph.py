"""Writes the graph of an encoder for the CPU; `bundles/encoder/bundle.py` has its inputs and outputs.

1. Outside attention, a value is a matrix with one row for each token, so that one node multiplies and adds.
2. Padding is on the right. A query of a padding row has a result, which nothing reads; its key is masked.
3. Norms, biases and activations are ONNX Runtime's fused nodes where it has one.
4. With pooling "cls", the last layer computes only the first row of each text after its attention.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import TensorProto

from gateway.builder.encoders.attention import AttentionWriter
from gateway.builder.encoders.config import EncoderSource
from gateway.builder.encoders.ends import EndWriter
from gateway.builder.encoders.linear import Linear
from gateway.builder.encoders.nodes import EncoderNodes
from gateway.builder.encoders.pooling import SentenceSettings
from gateway.builder.graphs.writer import GraphWriter
from gateway.bundles.encoder.bundle import EncoderInfo


class EncoderGraph:
    """The names of values: x, a matrix (tokens, hidden); `batch`, `sequence`: int64 (1,)."""

    def __init__(
        self, source: EncoderSource, info: EncoderInfo, settings: SentenceSettings, graph: GraphWriter, linear: Linear
    ) -> None:
        self._source, self._config, self._info = source, source.config, info
        self._graph, self._linear = graph, linear
        self._pooling = source.config.head_pooling if source.config.is_cross_encoder else settings.pooling
        self._nodes: EncoderNodes = EncoderNodes(source, graph)
        self._attention = AttentionWriter(source, graph, linear, self._nodes, info.longest)
        self._end = EndWriter(source, graph, self._nodes, settings, self._pooling)

    def write(self, progress: Callable[[float], None]) -> None:
        """Write all nodes. The caller saves the graph. `progress` gets the share that is done."""
        self._declare()
        x = self._embedded()
        layers = self._config.layers
        delta = ""  # what the next norm adds to x; before the first layer nothing
        for index in range(layers):
            x, delta = self._layer(index, x, delta, is_last=index == layers - 1)
            progress((index + 1) / (layers + 1))
        if delta:  # norms before the blocks
            x = self._final(x, delta)
        self._finish(x)
        progress(1.0)

    # --- inputs

    def _declare(self) -> None:
        graph = self._graph
        graph.input("input_ids", TensorProto.INT64, ["batch", "sequence"])
        graph.input("lengths", TensorProto.INT64, ["batch"])
        if self._info.has_types:
            graph.input("first_lengths", TensorProto.INT64, ["batch"])
        if self._config.is_cross_encoder:
            graph.output("scores", TensorProto.FLOAT, ["batch"])
        else:
            graph.output("vectors", TensorProto.FLOAT, ["batch", self._info.dimensions])
        graph.node("Shape", ["input_ids"], "batch", start=0, end=1)
        graph.node("Shape", ["input_ids"], "sequence", start=1, end=2)
        graph.node("Squeeze", ["sequence"], "width")
        graph.node(
            "Range", [self._nodes.number("zero", 0), "width", self._nodes.number("step", 1)], "indices"
        )  # (sequence,)
        graph.node("Unsqueeze", ["lengths", self._nodes.ints(1)], "lengths_column")
        graph.node("Cast", ["lengths"], "key_lengths", to=TensorProto.INT32)
        hidden = self._config.hidden
        graph.node("Concat", ["batch", "sequence", self._nodes.ints(hidden)], "by_text", axis=0)

    def _embedded(self) -> str:
        """The sum of the tables for words, positions and types, after its norm."""
        graph, source = self._graph, self._source
        ids = graph.node("Reshape", ["input_ids", self._nodes.ints(-1)], "ids")
        words, types = source.tensor("words.weight"), None
        if source.has("types.weight"):
            types = source.tensor("types.weight")
        positions = None
        if source.has("positions.weight"):
            positions = source.tensor("positions.weight")[self._config.first_position :][: self._info.longest]
        if types is not None and not self._info.has_types:  # every token has type 0
            if positions is not None:
                positions = positions + types[0]
            else:
                words = words + types[0]
        x = self._linear.table("words", words, ids)
        del words
        if positions is not None:
            table = graph.constant("positions", positions)
            rows = graph.node("Slice", [table, self._nodes.ints(0), "sequence", self._nodes.ints(0)], "own_positions")
            x = self._added_by_text(x, rows, "positioned")
        if types is not None and self._info.has_types:
            graph.node("Unsqueeze", ["first_lengths", self._nodes.ints(1)], "first_column")
            later = graph.node("GreaterOrEqual", ["indices", "first_column"], "is_later")
            kinds = graph.node("Cast", [later], "kinds", to=TensorProto.INT64)
            x = self._added_by_text(
                x, graph.node("Gather", [graph.constant("types", types), kinds], "typed"), "with_type"
            )
        return self._nodes.norm("norm", x) if source.has("norm.weight") else x

    def _added_by_text(self, x: str, term: str, name: str) -> str:
        graph = self._graph
        total = graph.node("Add", [graph.node("Reshape", [x, "by_text"], f"{x}.split"), term], f"{name}.sum")
        return graph.node("Reshape", [total, self._nodes.ints(-1, self._config.hidden)], name)

    # --- layers

    def _layer(self, i: int, x: str, delta: str, *, is_last: bool) -> tuple[str, str]:
        """Returns the values whose sum is the residual after the layer; the second is empty if it is added already."""
        if self._config.norm_order == "post":
            attended, x = self._first_rows(self._attended(i, x), x, is_last=is_last)
            x = self._nodes.added_norm(f"{i}.attention_norm", self._out(i, attended), x, f"{i}.out.bias")[0]
            return self._nodes.added_norm(f"{i}.mlp_norm", self._mlp(i, x), x, f"{i}.down.bias")[0], ""
        before, x = self._before(i, x, delta)
        attended, x = self._first_rows(self._attended(i, before), x, is_last=is_last)
        out = self._nodes.with_bias(self._out(i, attended), f"{i}.out.bias")
        before, x = self._nodes.added_norm(f"{i}.mlp_norm", out, x)
        return x, self._nodes.with_bias(self._mlp(i, before), f"{i}.down.bias")

    def _attended(self, i: int, x: str) -> str:
        return self._attention.write(i, x)

    def _finish(self, x: str) -> None:
        self._end.write(x)

    def _before(self, i: int, x: str, delta: str) -> tuple[str, str]:
        """The input of a pre-norm attention, and the residual. ModernBERT's first layer has no norm."""
        name = f"{i}.attention_norm"
        if delta:
            return self._nodes.added_norm(name, delta, x)
        return (self._nodes.norm(name, x) if self._source.has(f"{name}.weight") else x), x

    def _out(self, i: int, attended: str) -> str:
        return self._linear.product(f"{i}.out", attended, self._source.tensor(f"{i}.out.weight"))

    def _mlp(self, i: int, x: str) -> str:
        source, linear = self._source, self._linear
        up = linear.product(f"{i}.up", x, source.tensor(f"{i}.up.weight"))
        if not self._config.gated:
            active = self._nodes.activated(self._config.activation, up, f"{i}.up.bias")
        else:
            gate = linear.product(f"{i}.gate", x, source.tensor(f"{i}.gate.weight"))
            active = self._nodes.activated(self._config.activation, gate, f"{i}.gate.bias")
            active = self._graph.node("Mul", [active, self._nodes.with_bias(up, f"{i}.up.bias")], f"{i}.gated")
        return linear.product(f"{i}.down", active, source.tensor(f"{i}.down.weight"))

    # --- the end

    def _first_rows(self, attended: str, x: str, *, is_last: bool) -> tuple[str, str]:
        """Both, or their first rows of each text if no other row is needed."""
        if not is_last or self._pooling != "cls":
            return attended, x
        graph = self._graph
        graph.node(
            "Range",
            [self._nodes.number("zero", 0), graph.node("Squeeze", ["batch"], "texts"), self._nodes.number("step", 1)],
            "rows",
        )
        first = graph.node("Mul", ["rows", "width"], "first_rows")
        return (
            graph.node("Gather", [attended, first], f"{attended}.first"),
            graph.node("Gather", [x, first], f"{x}.first"),
        )

    def _final(self, x: str, delta: str) -> str:
        if self._source.has("final_norm.weight"):
            return self._nodes.added_norm("final_norm", delta, x)[0]
        return self._graph.node("Add", [x, delta], "final")
