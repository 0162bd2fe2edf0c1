"""Each architecture from a GGUF file: names, order of rows and metadata give the logits of `transformers`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.builder.sources.detect import open_source
from tests.builder.architectures.test_logits import LIMIT, error, session_of
from tests.support.architectures.cases import CASES
from tests.support.architectures.gguf_files import write_gguf
from tests.support.architectures.models import reference

#: What a GGUF file cannot say: windows of Qwen2, other layers with a window or without rotary positions.
_OTHERS = ("qwen2-window", "gemma3", "smollm3")
NAMES = [name for name in CASES if name not in _OTHERS]


@pytest.mark.parametrize("name", NAMES)
def test_gguf_file_computes_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    model = reference(name)
    logits = session_of(write_gguf(model, tmp_path / "m.gguf")).feed([model.ids])[0]
    assert error(logits, model.logits()) < LIMIT
    assert logits[len(model.prompt) - 1 :].argmax(-1).tolist() == model.answer


@pytest.mark.parametrize("name", ["granite-biases", "phi3-window"])
@pytest.mark.parametrize("stored_as", ["Q4_0", "Q4_1", "Q8_0", "Q5_1"])
def test_quantised_blocks_have_the_values_of_the_tensor(tmp_path: Path, name: str, stored_as: str) -> None:
    """Also those with a multiplier in them, and the rows of a fused matrix."""
    source = open_source(write_gguf(reference(name), tmp_path / "model.gguf", stored_as))
    for part in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
        weight = f"model.layers.1.{part}.weight"
        blocks, values = source.blocks(weight), source.tensor(weight)
        assert blocks is not None
        found = (blocks.scale[..., None] * blocks.quants + blocks.minimum[..., None]).reshape(values.shape)
        np.testing.assert_allclose(found, values, atol=0.02 if stored_as == "Q5_1" else 1e-6)
