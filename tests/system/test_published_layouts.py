"""Bundles in the form of each public exporter, served over HTTP through the emulated NPU.

Tokens are those of the float32 model. Log-probabilities are too, within the error of the NPU's float16.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from openai import BadRequestError, OpenAI
from openai.types import Completion
from tokenizers import Tokenizer

from gateway.config.tables import LocalModel
from tests.support.decoding import IDS
from tests.support.oracle import Oracle
from tests.support.server import config_of, serving

COUNT = 20
PROMPT = IDS[8:]
ROWS = 48  # configured rows of the open cache


@pytest.fixture(scope="module")
def client(olive_compiled: Path) -> Iterator[OpenAI]:
    models = {"olive": LocalModel(path=str(olive_compiled), provider="qnn", context_length=ROWS)}
    with serving(config_of(models)) as server:
        server.wait_until_tried()
        yield server.openai()


def complete(client: OpenAI, model: str, prompt: list[int], **options: object) -> Completion:
    options = {"max_tokens": COUNT, "temperature": 0, "logprobs": 1, **options}
    return client.completions.create(model=model, prompt=prompt, **options)  # type: ignore[call-overload,no-any-return]


def test_olive_bundle_gives_float32_tokens_and_log_probabilities(
    client: OpenAI, oracle: Oracle, tiny_source: Path
) -> None:
    answer = complete(client, "olive", PROMPT, extra_body={"ignore_eos": True}).choices[0]
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
