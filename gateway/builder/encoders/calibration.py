"""Runs the float graph of an encoder on texts of several languages, to find the channels that int8 cannot have."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto
from tokenizers import Tokenizer

from gateway.builder.encoders.linear import Channels
from gateway.builder.graphs.writer import GraphWriter

_TEXTS = Path(__file__).parents[1] / "npu" / "calibration.txt"
_LONGEST = 128  # tokens of a text
_BATCH = 4  # texts


def add_outputs(graph: GraphWriter, inputs: Mapping[str, int]) -> None:
    """Let the graph report the largest and the smallest number of each column of `inputs`: name -> columns."""
    axis = graph.constant("first_axis", np.array([0]))
    for rows, columns in inputs.items():
        for kind in ("ReduceMax", "ReduceMin"):
            name = graph.output(f"{kind}({rows})", TensorProto.FLOAT, [columns])
            graph.node(kind, [rows, axis], name, keepdims=0)


def find_channels(path: Path, inputs: Mapping[str, int], tokenizer: Tokenizer, longest: int) -> dict[str, Channels]:
    """Run the graph at `path`, which has the outputs, on the calibration texts."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [f"{kind}({rows})" for rows in inputs for kind in ("ReduceMax", "ReduceMin")]
    found: dict[str, Channels] = {}
    texts = [line for line in _TEXTS.read_text(encoding="utf-8").splitlines() if line.strip()]
    tokenizer.enable_truncation(min(_LONGEST, longest))
    ids = sorted((encoding.ids for encoding in tokenizer.encode_batch(texts)), key=len)
    has_types = "first_lengths" in {each.name for each in session.get_inputs()}
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        shortest = min(map(len, batch))  # without padding, whose rows would count
        lengths = np.full(len(batch), shortest)
        feed = {"input_ids": np.array([each[:shortest] for each in batch]), "lengths": lengths}
        values = session.run(names, feed | ({"first_lengths": (lengths + 1) // 2} if has_types else {}))
        for rows, highest, lowest in zip(inputs, values[::2], values[1::2], strict=True):
            old = found.get(rows, Channels(highest=highest, lowest=lowest))
            found[rows] = Channels(highest=np.maximum(old.highest, highest), lowest=np.minimum(old.lowest, lowest))
    return found
