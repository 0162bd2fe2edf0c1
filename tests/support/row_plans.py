"""Runs the nodes of a CPU graph that plan rows, without the rest of the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto

from gateway.builder.graphs.writer import GraphWriter
from gateway.worker.decoders.onnx import SessionOptions, open_session

Plan = dict[str, np.ndarray]


class RowPlans:
    """Args:
    path: of the graph to write.
    outputs: the names and types of the nodes to read.
    write: writes the nodes.
    """

    def __init__(self, path: Path, outputs: Mapping[str, int], write: Callable[[GraphWriter], None]) -> None:
        with GraphWriter(path) as graph:
            graph.input("input_ids", TensorProto.INT64, ["batch", "sequence"])
            graph.input("attention_mask", TensorProto.INT64, ["batch", "total"])
            graph.input("past_key_values.0.key", TensorProto.FLOAT, ["batch", 1, "capacity", 1])
            graph.input("logits_to_keep", TensorProto.INT64, [1])
            graph.input("row_multiple", TensorProto.INT64, [1])
            for name, kind in outputs.items():
                graph.output(name, kind, [])
            write(graph)
            graph.save("rows")
        self._outputs = list(outputs)
        self._session = open_session(path, SessionOptions(threads=1))

    def __call__(
        self, tokens: int, lengths: Sequence[int], *, multiple: int = 1, keep: int = 0, capacity: int = 256
    ) -> Plan:
        """Plan a call of `tokens` new tokens for each sequence, which then has `lengths` rows."""
        batch = len(lengths)
        feeds = {
            "input_ids": 100 + np.arange(batch * tokens).reshape(batch, tokens),
            "attention_mask": (np.arange(200) < np.array(lengths)[:, None]).astype(np.int64),
            "past_key_values.0.key": np.zeros((batch, 1, capacity, 1), np.float32),
            "logits_to_keep": np.array([keep]),
            "row_multiple": np.array([multiple]),
        }
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
