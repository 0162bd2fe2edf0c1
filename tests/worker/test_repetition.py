"""RepetitionPenalty against a simple reference, and in the token loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sampling import Sampling
from gateway.worker.repetition import RepetitionPenalty
from tests.support.token_loop_fixtures import Bench, random_ids

DRY = Sampling(temperature=0, dry_multiplier=1.0, dry_base=2.0)
BREAKER = 0  # the token whose text has a line break


def text(token: int) -> bytes:
    return b"a\n" if token == BREAKER else b"a"


def penalties(ids: list[int], sampling: Sampling = DRY) -> list[float]:
    """What is subtracted from the logits of the tokens 0..4 after `ids`."""
    penalty, logits = RepetitionPenalty(sampling, text), np.zeros(5, np.float32)
    for token in ids:
        penalty.append(token)
    penalty.apply(logits)
    return (-logits).tolist()


def naive(ids: list[int], sampling: Sampling = DRY) -> list[float]:
    """Reference: for each earlier position, compare backwards until a difference or a breaker."""
    expected = [0.0] * 5
    for position, token in enumerate(ids):
        length = 0
        while length < position and ids[position - 1 - length] == ids[-1 - length] != BREAKER:
            length += 1
        if length >= sampling.dry_allowed_length:
            over = length - sampling.dry_allowed_length
            expected[token] = max(expected[token], sampling.dry_multiplier * sampling.dry_base**over)
    return expected


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 4))
def test_penalty_equals_reference(ids: list[int], allowed: int) -> None:
    sampling = Sampling(dry_multiplier=0.5, dry_base=1.75, dry_allowed_length=allowed)
    assert penalties(ids, sampling) == pytest.approx(naive(ids, sampling))


def test_longer_repetition_costs_more() -> None:
    assert penalties([1, 2, 3, 4, 2]) == [0, 0, 0, 0, 0]
    assert penalties([1, 2, 3, 4, 1, 2]) == [0, 0, 0, 1, 0]
    assert penalties([1, 2, 3, 4, 1, 2, 3]) == [0, 0, 0, 0, 2]


def test_repetition_does_not_continue_across_a_breaker() -> None:
    assert penalties([1, BREAKER, 2, 3, 1, BREAKER, 2]) == [0, 0, 0, 0, 0]
    assert penalties([1, BREAKER, 2, 3, 4, 1, BREAKER, 2, 3]) == [0, 0, 0, 0, 1]


def test_long_loop_has_a_finite_penalty() -> None:
    (one, *rest) = penalties([4] * 3000)[::-1]
    assert one == 1e4 and not any(rest)


LOOPING = {5: 30.0, 6: 30.0}  # the model alternates between two tokens, and never ends


def test_answer_leaves_a_loop_also_with_drafts_and_in_a_batch(make_bench: Callable[..., Bench]) -> None:
    settings = Sampling(temperature=0, dry_multiplier=10.0, logit_bias=LOOPING)
    prompts = [random_ids(20, seed) for seed in range(3)]
    together, drafting = make_bench(slots=3, lookup=False), make_bench(slots=1, lookup=True)
    requests = [together.submit(prompt, max_tokens=40, sampling=settings) for prompt in prompts]
    together.finish()
    for prompt, request in zip(prompts, requests, strict=True):
        tokens = together.tokens(request)
        assert len(tokens) == 40 and set(tokens) - LOOPING.keys()
        assert drafting.answer(prompt, max_tokens=40, sampling=settings) == tokens
    without = Sampling(temperature=0, logit_bias=LOOPING)
    assert set(drafting.answer(prompts[0], max_tokens=40, sampling=without)) <= LOOPING.keys()


def test_prompt_can_be_quoted(make_bench: Callable[..., Bench]) -> None:
    """Only the answer counts: the first two tokens of a quotation do not lower the third."""
    settings = Sampling(temperature=0, dry_multiplier=100.0, logit_bias={5: 30.0})
    bench = make_bench()
    request = bench.submit([5] * 20, max_tokens=3, sampling=settings)
    bench.finish()
    assert bench.tokens(request) == [5, 5, 5]
