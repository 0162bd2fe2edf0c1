"""SmolLM2-135M on the emulated NPU, all thirty layers, up to the official client. Slow: `scripts/test_slow.py`."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gateway.builder.fetch import ensure_bundle
from gateway.builder.npu.build import REPORT, NpuReport
from gateway.bundles.bundle import load_bundle
from gateway.config.tables import LocalModel
from gateway.engines.local.prompts import setup_of
from gateway.generation import Chat, Message
from gateway.prompts.encoder import PromptEncoder
from gateway.prompts.messages import Encode
from gateway.qnn.device import NpuDevice
from gateway.worker.decoders.static.decoder import StaticDecoder
from gateway.worker.frames import WorkerSpec
from gateway.worker.main import open_decoder
from tests.conftest import MODELS, SMOLLM2
from tests.support.server import Running, config_of, serving

pytestmark = pytest.mark.slow

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def bundle(npu: NpuDevice) -> Path:
    """The NPU bundle, built once into models/."""
    model = LocalModel(path=SMOLLM2.path, source=SMOLLM2.source, provider="qnn")
    return ensure_bundle(model, MODELS, lambda what, share: None)


def test_build_report_has_small_errors(bundle: Path) -> None:
    found = msgspec.json.decode((bundle / REPORT).read_bytes(), type=NpuReport)
    assert found.precision == "fp16" and found.top1 >= 0.97
    assert max(part.npu_error for part in found.parts) < 0.01


def ids_of(bundle: Path, question: str) -> list[int]:
    chat = Chat(messages=(Message(role="user", content=question),))
    return PromptEncoder(setup_of(load_bundle(bundle), "")).encode(Encode(prompt=chat, context_length=8192)).ids


def test_first_tokens_equal_those_of_cpu(bundle: Path, smollm2: Path) -> None:
    """A token may differ if the CPU's two best logits differ by less than 0.5, the error of float16."""
    prompt = ids_of(bundle, QUESTION)
    npu = open_decoder(WorkerSpec(bundle=str(bundle), provider="qnn"))
    cpu = open_decoder(WorkerSpec(bundle=str(smollm2), provider="cpu", max_sequences=1))
    caches = npu.new_cache(), cpu.new_cache()
    for start in range(0, len(prompt), npu.spec.prompt_width):
        window = prompt[start : start + npu.spec.prompt_width]
        rows = [decoder.prefill(cache, window) for decoder, cache in zip((npu, cpu), caches, strict=True)]
    for _ in range(8):
        token = int(rows[1].argmax())
        margin = float(np.diff(np.sort(rows[1])[-2:])[0])
        assert int(rows[0].argmax()) == token or margin < 0.5
        assert np.abs(rows[0] - rows[1]).max() < 1.0
        rows = [decoder.step([cache], [token])[0] for decoder, cache in zip((npu, cpu), caches, strict=True)]
    npu.close()
    cpu.close()


def test_batched_step_gives_logits_of_single_steps(bundle: Path) -> None:
    npu = open_decoder(WorkerSpec(bundle=str(bundle), provider="qnn", max_sequences=2))
    assert isinstance(npu, StaticDecoder) and npu.batch_size == 4
    batched, single = [npu.new_cache() for _ in range(2)], [npu.new_cache() for _ in range(2)]
    for index, question in enumerate((QUESTION, "Name three fruits.")):
        ids = ids_of(bundle, question)
        for start in range(0, len(ids), npu.spec.prompt_width):
            npu.prefill(batched[index], ids[start : start + npu.spec.prompt_width])
        single[index].copy_from(batched[index], len(ids))
    for tokens in ([504, 1000], [260, 28]):
        logits = npu.step(batched, tokens).copy()
        expected = [npu.step([cache], [token])[0].copy() for cache, token in zip(single, tokens, strict=True)]
        assert np.abs(logits - expected).max() < 0.5
        assert (logits.argmax(-1) == np.argmax(expected, -1)).all()
    npu.close()


def test_official_client_gets_answer_from_npu(bundle: Path) -> None:
    model = LocalModel(path=str(bundle), provider="qnn", temperature=0, max_sequences=1, watchdog_s=300)
    with serving(config_of({"smollm2": model}), loaded=False) as server:
        ready = _wait_until_ready(server)
        assert ready["device"] == "emulated" and ready["placement"]["QNN"] == 3  # prompt, drafts, step
        client = server.openai(timeout=600)
        answer = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": QUESTION}], max_tokens=10
        )
        assert "Paris" in (answer.choices[0].message.content or "")
        stream = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": QUESTION}], max_tokens=10, stream=True
        )
        assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def _wait_until_ready(server: Running) -> dict[str, object]:
    until = time.monotonic() + 300
    with server.http() as client:
        while True:
            engine: dict[str, object] = client.get("/readyz").json()["models"][0]["engine"]
            if engine["state"] == "ready":
                return engine
            assert engine["state"] in ("loading", "restarting") and time.monotonic() < until, engine
            time.sleep(0.2)
