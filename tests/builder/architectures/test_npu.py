"""The layers of the architectures on the emulated NPU, without CPU fallback, against the logits of `transformers`.

Layers with a window, or with partial rotation, are single operators there (`graphs/static_attention.py`). The texts are
longer than each window.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gateway.builder.build import build_bundle
from gateway.builder.graphs.static import PROMPT, STEP, split, write_part
from gateway.builder.graphs.static_tables import write_embeddings_and_head
from gateway.builder.npu.build import NpuTarget
from gateway.builder.npu.part_runner import cpu_session, relative_error, run_part
from gateway.builder.sources.detect import open_source
from gateway.qnn.device import NpuDevice
from gateway.qnn.provider import open_session
from gateway.worker.decoders.base import KVCache
from gateway.worker.decoders.static.decoder import StaticDecoder
from tests.support.architectures.cases import CASES
from tests.support.architectures.models import Reference, reference
from tests.support.decoding import prefill
from tests.support.made_once import made_once
from tests.support.npu.fixtures import OpenDecoder
from tests.support.tiny import train_tokenizer

#: In each run: partial rotation with its amplitude, norms after the blocks, no rotation, biases.
_USUAL = ("phi4-mini", "olmo2", "smollm3", "qwen2-window")
_OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in CASES if name not in _USUAL]
#: Measured: 0.004 to 0.018 in float16. These random models have larger errors than trained ones.
LIMIT = 0.03
_TOKENS, _STEPS = 56, 4
_ANSWERED = 6  # tokens


@pytest.mark.parametrize("name", [*_USUAL, *_OTHERS])
def test_layers_on_the_npu_compute_the_logits_of_transformers(npu: NpuDevice, tmp_path: Path, name: str) -> None:
    model = reference(name)
    source = open_source(model.write_folder(tmp_path))
    (part,) = split(source.config.layers, 1)
    graphs = write_part(source, tmp_path, part, widths={PROMPT: 16, STEP: 1}, contexts=[96], precision="fp16")
    write_embeddings_and_head(source, tmp_path, "fp16")
    (embedded,) = cpu_session(str(tmp_path / "embeddings.onnx")).run(
        None, {"input_ids": np.array([model.ids[:_TOKENS]])}
    )
    sessions = [open_session(graphs[graph, 96], npu) for graph in (PROMPT, STEP)]
    states = run_part(sessions, embedded[0].astype(np.float32), _STEPS)
    head = cpu_session(str(tmp_path / "lm_head.onnx"))
    (logits,) = head.run(None, {"output_hidden_states": states[None].astype(np.float16)})
    assert relative_error(logits[0], model.logits()[:_TOKENS]) < LIMIT


@pytest.fixture(scope="module")
def gemma() -> Reference:
    """Windows, two kinds of rotary positions, norms before and after the blocks and of heads, GeGLU."""
    return reference("gemma3")


@pytest.fixture(scope="module")
def gemma_bundle(npu: NpuDevice, gemma: Reference, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = NpuTarget(device=npu, contexts=(96,), width=16, batch=2, verify=1)

    def build(folder: Path) -> None:
        source = gemma.write_folder(tmp_path_factory.mktemp("gemma"))
        (source / "tokenizer.json").write_text(train_tokenizer().to_str(), encoding="utf-8")
        build_bundle(source, folder, progress=lambda *_: None, target=target)

    return made_once(tmp_path_factory, "gemma_npu_bundle", build)


@pytest.fixture
def decoder(gemma_bundle: Path, open_decoder: OpenDecoder) -> StaticDecoder:
    return open_decoder(gemma_bundle, "qnn")


def test_windows_beyond_their_size_give_the_tokens_of_transformers(decoder: StaticDecoder, gemma: Reference) -> None:
    """Two sequences answer in batched steps: one from its own prompt, one from a copy of the other's rows.

    Before them, a draft is checked and taken back.
    """
    first, second = decoder.new_cache(), decoder.new_cache()
    prefill(decoder, first, gemma.prompt[:60], width=16)
    second.copy_from(first, 55)
    prefill(decoder, second, gemma.prompt[55:], width=16)
    logits = prefill(decoder, first, gemma.prompt[60:], width=16)
    answer = [int(logits.argmax())]
    draft = decoder.verify(first, [*answer, 7, 7, 7])[0]
    assert int(draft.argmax()) == gemma.answer[1]
    first.truncate(len(gemma.prompt))
    caches: list[KVCache] = [first, second]
    while len(answer) < _ANSWERED:
        both = decoder.step(caches, [answer[-1]] * 2)
        assert both[0].argmax() == both[1].argmax()
        answer.append(int(both[0].argmax()))
    assert answer == gemma.answer[:_ANSWERED]
