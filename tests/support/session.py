"""Runs a CPU graph in a bare session with the product's options, and without the decoder's padding rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from gateway.worker.decoders.onnx import SessionOptions, numpy_dtype, open_session

Array = NDArray[np.float32]


class BareSession:
    """`batch` sequences with caches of `capacity` rows, which the graph writes in place."""

    def __init__(self, graph: Path, *, batch: int = 1, capacity: int = 256) -> None:
        self.session = open_session(graph, SessionOptions(threads=2))
        self.lengths = np.zeros(batch, np.int64)
        self._caches = {
            value.name: ort.OrtValue.ortvalue_from_numpy(
                np.zeros((batch, value.shape[1], capacity, value.shape[3]), numpy_dtype(value.type))
            )
            for value in self.session.get_inputs()
            if value.name.startswith("past_key_values")
        }

    def reset(self) -> None:
        """Make all caches empty."""
        self.lengths[:] = 0

    def feed(self, ids: Sequence[Sequence[int]], **extra: Any) -> Array:
        """Append a row of ids to each sequence. Returns logits (batch, kept, vocab)."""
        self.lengths = self.lengths + len(ids[0])
        return self._run(np.array(ids, np.int64), extra)

    def feed_padded(self, ids: Sequence[Sequence[int]]) -> Array:
        """Start each sequence with its ids, padded on the right. Returns logits (batch, longest, vocab)."""
        width = max(map(len, ids))
        self.lengths = np.array([len(row) for row in ids], np.int64)
        return self._run(np.array([[*row, *[0] * (width - len(row))] for row in ids], np.int64), {})

    def _run(self, ids: NDArray[np.int64], extra: dict[str, Any]) -> Array:
        mask = (np.arange(self.lengths.max()) < self.lengths[:, None]).astype(np.int64)
        binding = self.session.io_binding()
        inputs = {"input_ids": ids, "attention_mask": mask} | extra
        held = {name: ort.OrtValue.ortvalue_from_numpy(values) for name, values in inputs.items()}
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        for name, cache in self._caches.items():
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), cache)
        self.session.run_with_iobinding(binding)
        logits: Array = binding.get_outputs()[0].numpy()
        return logits
