"""Bundles in the form of each public exporter, served over HTTP through the emulated NPU.

Tokens are those of the float32 model. Log-probabilities are too, within the error of the NPU's float16.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, InternalServerError, OpenAI
from openai.types import Completion
from tokenizers import Tokenizer

from gateway.config.tables import LocalModel
from gateway.worker.sampling import log_softmax
from tests.support.decoding import IDS, prefill
from tests.support.model_package import CPU, NPU, write_package
from tests.support.npu.ai_hub_export import write_export
from tests.support.npu.fixtures import OpenDecoder
from tests.support.npu.genie_bundle import tokenizer
from tests.support.npu.htp_compile import context_binaries
from tests.support.npu.tiny_htp_decoder import TinyDecoder
from tests.support.oracle import Oracle
from tests.support.server import config_of, serving

COUNT = 20
PROMPT = IDS[8:]
ROWS = 48  # configured rows of the open cache


@pytest.fixture(scope="module")
def client(
    olive_compiled: Path,
    foundry_compiled: Path,
    package: Path,
    ai_hub_exported: Path,
    llmware: Path,
    ai_hub_without_scale: Path,
    text: Path,
) -> Iterator[OpenAI]:
    models = {
        "olive": LocalModel(path=str(olive_compiled), provider="qnn", context_length=ROWS),
        "foundry": LocalModel(path=str(foundry_compiled), provider="qnn", context_length=ROWS),
        "package": LocalModel(path=str(package), provider="qnn", context_length=ROWS),
        "ai-hub": LocalModel(path=str(ai_hub_exported), provider="qnn", tokenizer=str(text)),
        "llmware": LocalModel(path=str(llmware), provider="qnn", tokenizer=str(text)),
        "no-scale": LocalModel(path=str(ai_hub_without_scale), provider="qnn", tokenizer=str(text)),
        "no-text": LocalModel(path=str(ai_hub_exported), provider="qnn"),
    }
    with serving(config_of(models)) as server:
        server.wait_until_tried()
        with server.openai() as opened:
            yield opened


@pytest.fixture(scope="module")
def package(olive_compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model package as Olive writes it."""
    folder = tmp_path_factory.mktemp("package") / "tiny.ortpackage"
    return write_package(folder, olive_compiled, {"cpu": CPU, "qnn-x-elite": NPU}, external=True)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tokenizer that AI Hub's export lacks."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer(TinyDecoder().vocab_size).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def ai_hub_without_scale(context_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ai_hub") / "embedded"
    return write_export(folder, context_binaries(context_folder), embedded=True)


def complete(client: OpenAI, model: str, prompt: list[int], **options: object) -> Completion:
    options = {"max_tokens": COUNT, "temperature": 0, "logprobs": 1, **options}
    return client.completions.create(model=model, prompt=prompt, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("model", ["olive", "foundry", "package"])
def test_olive_bundle_gives_float32_tokens_and_log_probabilities(
    client: OpenAI, model: str, oracle: Oracle, tiny_source: Path
) -> None:
    plain = {"ignore_eos": True, "repetition_penalty": 1.0}  # the bundle recommends another
    answer = complete(client, model, PROMPT, extra_body=plain).choices[0]
    ids, logits = oracle.greedy(PROMPT, COUNT)
    expected = [row[token] - np.logaddexp.reduce(row) for token, row in zip(ids, logits, strict=True)]
    assert answer.logprobs is not None
    np.testing.assert_allclose(answer.logprobs.token_logprobs, expected, atol=0.1)
    assert answer.text == Tokenizer.from_file(str(tiny_source / "tokenizer.json")).decode(ids)


def test_prompt_above_configured_rows_is_refused(client: OpenAI) -> None:
    filled = complete(client, "olive", (IDS * 3)[: ROWS - 1], max_tokens=1)
    assert filled.usage is not None and filled.usage.total_tokens == ROWS
    with pytest.raises(BadRequestError, match=f"maximum context length is {ROWS} tokens"):
        complete(client, "olive", (IDS * 3)[: ROWS + 1], max_tokens=1)


# -- AI Hub's export for onnxruntime-genai ------------------------------------------------------------------------


@pytest.fixture
def expected(ai_hub_uncompiled: Path, text: Path, open_decoder: OpenDecoder) -> tuple[str, list[float]]:
    """Text and log-probabilities of the same graphs on the CPU, with DequantizeLinear as the last stage."""
    decoder = open_decoder(ai_hub_uncompiled, "cpu")
    cache = decoder.new_cache()
    logits, ids, scores = prefill(decoder, cache, PROMPT), [], []
    for _ in range(COUNT):
        ids.append(int(logits.argmax()))
        scores.append(float(log_softmax(logits)[ids[-1]]))
        logits = decoder.step([cache], ids[-1:])[0]
    return Tokenizer.from_file(str(text / "tokenizer.json")).decode(ids), scores


@pytest.mark.parametrize("model", ["ai-hub", "llmware"])
def test_ai_hub_export_gives_reference_tokens_and_log_probabilities(
    client: OpenAI, model: str, expected: tuple[str, list[float]]
) -> None:
    answer = complete(client, model, PROMPT, extra_body={"ignore_eos": True}).choices[0]
    assert answer.logprobs is not None and answer.text == expected[0]
    np.testing.assert_allclose(answer.logprobs.token_logprobs, expected[1], atol=0.3)
    assert min(expected[1]) < -0.05  # codes in place of logits would give 0.0


def test_ai_hub_export_obeys_bias_and_temperature(client: OpenAI, expected: tuple[str, list[float]]) -> None:
    biased = complete(client, "ai-hub", PROMPT, logit_bias={"77": 30}, max_tokens=4).choices[0].text
    sampled = {complete(client, "ai-hub", PROMPT, temperature=2, seed=seed).choices[0].text for seed in range(4)}
    assert biased != expected[0][:4] and len(set(biased)) == 1
    assert len(sampled) > 1


def test_model_without_scale_answers_greedily(client: OpenAI, expected: tuple[str, list[float]]) -> None:
    options = {"logprobs": None, "extra_body": {"ignore_eos": True}}
    assert complete(client, "no-scale", PROMPT, **options).choices[0].text == expected[0]
    assert "logprobs" not in client.models.retrieve("no-scale").model_extra["capabilities"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("param", "options"),
    [
        ("temperature", {"temperature": 0.5}),
        ("logprobs", {"logprobs": 1}),
        ("logit_bias", {"logit_bias": {"7": 5}}),
        ("presence_penalty", {"presence_penalty": 1}),
        ("frequency_penalty", {"frequency_penalty": 1}),
        ("repetition_penalty", {"extra_body": {"repetition_penalty": 1.2}}),
        ("dry_multiplier", {"extra_body": {"dry_multiplier": 0.8}}),
    ],
)
def test_model_without_scale_refuses_parameter_by_name(client: OpenAI, param: str, options: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError, match="does not state the scale of its logits") as raised:
        complete(client, "no-scale", PROMPT, **{"logprobs": None, **options})
    assert (raised.value.param, raised.value.code) == (param, "unsupported_parameter")


def test_missing_tokenizer_is_named_with_the_next_step(client: OpenAI) -> None:
    with pytest.raises(InternalServerError, match=r'`hf download ORG/MODEL .*`tokenizer = \\?"FOLDER') as raised:
        complete(client, "no-text", PROMPT)
    assert raised.value.status_code == 503
