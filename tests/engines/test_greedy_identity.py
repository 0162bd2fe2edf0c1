"""The real model answers the same under every switch: together or alone, cached or not, predicted or not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from gateway.bundles.bundle import load_bundle
from gateway.engines.decoder import CpuDecoder
from gateway.engines.frames import FromWorker, Submit, Tokens
from gateway.engines.token_loop import TokenLoop
from tests.engines.conftest import GREEDY, no_grammar

QUESTIONS = (
    "What is the capital of France?",
    "Name three fruits and a colour for each of them.",
    "Write a Python function that adds two numbers.",
    "Explain in one sentence why the sky is blue.",
)
LENGTH = 24


@pytest.fixture(scope="module")
def prompts(smollm2: Path) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    system = "<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n<|im_start|>user\n"
    return [tokenizer.encode(f"{system}{q}<|im_end|>\n<|im_start|>assistant\n").ids for q in QUESTIONS]


@pytest.fixture(scope="module")
def decoder(smollm2: Path) -> Iterator[CpuDecoder]:
    decoder = CpuDecoder(load_bundle(smollm2), slots=40, context_length=256)
    yield decoder
    decoder.close()


class Answers:
    """What a fresh loop over slots of its own answers."""

    def __init__(self, decoder: CpuDecoder, slots: int, **options: Any) -> None:
        self._frames: list[FromWorker] = []
        caches = [decoder.new_cache() for _ in range(slots)]
        self._loop = TokenLoop(decoder, caches, self._frames.append, make_constraint=no_grammar, **options)
        self._next_id = 0

    def submit(self, ids: list[int], **options: Any) -> int:
        self._next_id += 1
        self._loop.submit(Submit(id=self._next_id, ids=ids, sampling=GREEDY, max_tokens=LENGTH, **options))
        return self._next_id

    def finish(self) -> None:
        while not self._loop.is_idle:
            self._loop.turn()

    def of(self, request: int) -> list[int]:
        tokens = [frame for frame in self._frames if isinstance(frame, Tokens) and frame.id == request]
        return [token for frame in tokens for token in frame.ids]


@pytest.fixture(scope="module")
def plain(decoder: CpuDecoder, prompts: list[list[int]]) -> list[list[int]]:
    """One request at a time, nothing kept."""
    answers = Answers(decoder, 1, prefix_cache=False)
    found = []
    for ids in prompts:
        request = answers.submit(ids)
        answers.finish()
        found.append(answers.of(request))
    return found


def test_together(decoder: CpuDecoder, prompts: list[list[int]], plain: list[list[int]]) -> None:
    answers = Answers(decoder, 4, prefix_cache=False)
    requests = [answers.submit(ids) for ids in prompts]
    answers.finish()
    assert [answers.of(request) for request in requests] == plain


@pytest.mark.parametrize("slots", [1, 2])
def test_with_a_warm_cache(decoder: CpuDecoder, prompts: list[list[int]], plain: list[list[int]], slots: int) -> None:
    answers = Answers(decoder, slots)
    for ids, expected in [*zip(prompts, plain, strict=True)] * 2:
        request = answers.submit(ids)
        answers.finish()
        assert answers.of(request) == expected


def test_as_a_second_turn(decoder: CpuDecoder, prompts: list[list[int]]) -> None:
    """An answer whose rows came step by step, against the same conversation computed at once."""
    first = prompts[0] + answer_of(decoder, prompts[0])
    second = first + prompts[1][-20:]
    warm = Answers(decoder, 1)
    warm.submit(prompts[0])
    warm.finish()
    request = warm.submit(second)
    warm.finish()
    assert warm.of(request) == answer_of(decoder, second)


def answer_of(decoder: CpuDecoder, ids: list[int]) -> list[int]:
    answers = Answers(decoder, 1, prefix_cache=False)
    request = answers.submit(ids)
    answers.finish()
    return answers.of(request)


@pytest.mark.parametrize("kind", ["right", "edited", "wrong"])
def test_with_a_prediction(decoder: CpuDecoder, prompts: list[list[int]], plain: list[list[int]], kind: str) -> None:
    answers = Answers(decoder, 4)
    requests = []
    for ids, expected in zip(prompts, plain, strict=True):
        edited = [*expected[:5], *expected[8:12], 500, 501, *expected[12:]]
        prediction = {"right": expected, "edited": edited, "wrong": list(range(500, 530))}[kind]
        requests.append(answers.submit(ids, prediction=prediction))
    answers.finish()
    assert [answers.of(request) for request in requests] == plain
