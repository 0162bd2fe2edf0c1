"""Static graphs: how the layers are split into parts, and the logits of each architecture in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.builder.graphs.static import BATCH, PROMPT, STEP, split, write_part
from gateway.builder.graphs.static_tables import write_embeddings_and_head
from gateway.builder.npu.part_runner import cpu_session, relative_error, run_part
from gateway.builder.sources.detect import open_source
from tests.support.architectures.cases import CASES
from tests.support.architectures.models import reference

LIMIT = 1e-5  # also in docs/models.md
#: They have the layers of other models.
_SIMILAR = ("gemma3-six", "smollm3-four", "qwen3-tied", "granite-biases", "phi3.5-short")
_NAMES = [pytest.param(name, marks=pytest.mark.slow if name in _SIMILAR else ()) for name in CASES]
_STEPS, _BATCHED = 4, 30  # the latter is more than each window of the models


def test_split_divides_layers_evenly() -> None:
    assert [part.layers for part in split(7, 3)] == [range(0, 2), range(2, 4), range(4, 7)]
    first, second, third = split(7, 3)
    assert (first.input, first.output) == ("input_hidden_states", second.input)
    assert (third.input, third.output) == (second.output, "output_hidden_states")


@pytest.mark.parametrize("name", _NAMES)
def test_graphs_in_float32_compute_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    """In windows, in single steps and in batched steps, beyond the windows of the model."""
    model = reference(name)
    source = open_source(model.write_folder(tmp_path))
    (part,) = split(source.config.layers, 1)
    widths = {PROMPT: 8, STEP: 1}
    graphs = write_part(source, tmp_path, part, widths=widths, contexts=[96], precision="fp32", sequences=2)
    write_embeddings_and_head(source, tmp_path, "fp32")
    (embedded,) = cpu_session(str(tmp_path / "embeddings.onnx")).run(None, {"input_ids": np.array([model.ids])})
    prompt, step, batch = (cpu_session(str(graphs[name, 96])) for name in (PROMPT, STEP, BATCH))
    states = run_part([prompt, step], embedded[0], _STEPS)
    batched = run_part([batch], embedded[0, :_BATCHED], _BATCHED)
    head, expected = cpu_session(str(tmp_path / "lm_head.onnx")), model.logits()
    (logits,) = head.run(None, {"output_hidden_states": states[None]})
    assert relative_error(logits[0], expected) < LIMIT
    assert logits[0, len(model.prompt) - 1 :].argmax(-1).tolist() == model.answer
    (logits,) = head.run(None, {"output_hidden_states": batched[None, 1::2]})
    assert relative_error(logits[0], expected[:_BATCHED]) < LIMIT
