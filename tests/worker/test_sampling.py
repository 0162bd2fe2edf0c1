"""The sampling functions against simple reference implementations, and against the expected distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gateway.errors import InvalidRequest
from gateway.sampling import Sampling
from gateway.worker import sampling
from gateway.worker.sampling import Sampler

logit_rows = arrays(np.float32, st.integers(1, 700), elements=st.floats(-30, 30, width=32))


def naive_probabilities(logits: np.ndarray, s: Sampling) -> np.ndarray:
    """Reference: all steps with full sorts, in float64."""
    scaled = logits.astype(np.float64) / s.temperature
    order = np.argsort(-scaled, kind="stable")
    keep = np.zeros(len(logits), bool)
    keep[order[: s.top_k] if s.top_k else order] = True
    p = np.where(keep, np.exp(scaled - scaled.max()), 0)
    p /= p.sum()
    if s.top_p < 1:
        order = np.argsort(-p, kind="stable")
        count = int(np.searchsorted(np.cumsum(p[order]), s.top_p)) + 1
        p[order[count:]] = 0
    p[p < s.min_p * p.max()] = 0
    return p / p.sum()


def drawn_probabilities(logits: np.ndarray, s: Sampling, draws: int = 20_000) -> np.ndarray:
    best = logits.max()
    uniforms = (np.arange(draws) + 0.5) / draws  # evenly spaced: each share is exact to 1 / draws
    tokens = [sampling.sample(logits.copy(), best, s, u) for u in uniforms]
    return np.bincount(tokens, minlength=len(logits)) / draws


@pytest.mark.parametrize(
    "settings_",
    [
        Sampling(),
        Sampling(temperature=0.3),
        Sampling(temperature=2.0, top_k=5),
        Sampling(top_p=0.8),
        Sampling(min_p=0.1),
        Sampling(temperature=1.3, top_k=20, top_p=0.7, min_p=0.05),
    ],
    ids=["softmax", "low_temperature", "top_k", "top_p", "min_p", "all"],
)
def test_draws_follow_expected_distribution(settings_: Sampling) -> None:
    logits = np.random.default_rng(1).normal(0, 2, 300).astype(np.float32)
    expected = naive_probabilities(logits, settings_)
    assert drawn_probabilities(logits, settings_, 5000) == pytest.approx(expected, abs=3e-4)


def test_seeded_sampler_draws_follow_softmax() -> None:
    logits = np.random.default_rng(2).normal(0, 1.5, 40).astype(np.float32)
    sampler = Sampler(Sampling(seed=3), (), 0)
    draws = 20_000
    counts = np.bincount([sampler.choose(logits.copy()) for _ in range(draws)], minlength=40)
    p = naive_probabilities(logits, Sampling())
    chi_square = float((((counts - draws * p) ** 2) / (draws * p)).sum())
    assert chi_square < 73  # 39 degrees of freedom: p = 0.001


@given(logit_rows, st.floats(0, 1))
def test_nucleus_equals_full_sort(logits: np.ndarray, top_p: float) -> None:
    weights = np.exp(logits - logits.max())
    kept = sampling.nucleus(weights, top_p)
    share = weights[kept].sum(dtype=np.float64) / weights.sum(dtype=np.float64)
    assert share >= top_p - 1e-6
    without_smallest = share - weights[kept].min() / weights.sum(dtype=np.float64)
    assert len(kept) == 1 or without_smallest < top_p + 1e-6
    assert weights[kept].min() >= np.delete(weights, kept).max(initial=0)


def sorted_nucleus(weights: np.ndarray, top_p: float) -> list[int]:
    """Reference: a sort of all weights. Of equal ones the first ones come first."""
    order = np.argsort(-weights, kind="stable")
    sums = np.cumsum(weights[order], dtype=np.float64)
    count = min(int(np.searchsorted(sums, weights.sum(dtype=np.float64) * top_p)) + 1, len(weights))
    return sorted(order[:count].tolist())


@contextmanager
def small_samples() -> Iterator[None]:
    """Rows of a few hundred logits are searched like large vocabularies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_SAMPLED", 8)
        patch.setattr(sampling, "_MARGIN", 1)
        patch.setattr(sampling, "_FEW", 4)
        yield


@given(logit_rows, st.sampled_from([0.1, 0.5, 0.9, 0.99]), st.floats(0.1, 20))
def test_nucleus_of_sampled_weights_equals_full_sort(logits: np.ndarray, top_p: float, temperature: float) -> None:
    weights = np.exp((logits - logits.max()) / np.float32(temperature))
    with small_samples():
        assert sampling.nucleus(weights, top_p).tolist() == sorted_nucleus(weights, top_p)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("grid", [0.0, 0.016])  # of half floats
def test_nucleus_of_large_vocabulary_equals_full_sort(spread: float, grid: float) -> None:
    logits = np.random.default_rng(4).normal(0, spread, 128_256).astype(np.float32)
    logits = np.round(logits / grid) * np.float32(grid) if grid else logits
    weights = np.exp(logits - logits.max()).astype(np.float32)
    assert sampling.nucleus(weights, 0.9).tolist() == sorted_nucleus(weights, 0.9)


@given(logit_rows, st.integers(1, 80))
def test_top_k_ids_of_blocks_are_largest_logits(logits: np.ndarray, k: int) -> None:
    k = min(k, len(logits))
    with small_samples():
        ids = sampling.top_k_ids(logits, k)
    assert ids.tolist() == sorted(set(ids.tolist())) and len(ids) == k
    assert np.sort(logits[ids]).tolist() == np.sort(logits)[len(logits) - k :].tolist()


@given(logit_rows, st.integers(1, 700))
def test_top_k_ids_are_largest_logits(logits: np.ndarray, k: int) -> None:
    k = min(k, len(logits))
    ids = sampling.top_k_ids(logits, k)
    assert len(set(ids.tolist())) == k
    assert np.sort(logits[ids]).tolist() == np.sort(logits)[len(logits) - k :].tolist()


@given(arrays(np.float32, st.integers(1, 700), elements=st.sampled_from([0, 0.25, 1, 3])), st.floats(0, 1))
def test_draw_equals_running_sum(weights: np.ndarray, uniform: float) -> None:
    uniform = min(uniform, 1 - 2**-53)
    if not weights.any():
        return
    sums = np.cumsum(weights, dtype=np.float64)
    index = sampling.draw(weights, uniform)
    assert weights[index] > 0
    assert index == int(np.argmax(sums > uniform * sums[-1])) or uniform > 1 - 1e-12


@given(logit_rows)
def test_log_softmax_equals_float64_result(logits: np.ndarray) -> None:
    exact = logits.astype(np.float64)
    exact = exact - exact.max() - np.log(np.exp(exact - exact.max()).sum())
    assert sampling.log_softmax(logits) == pytest.approx(exact, abs=1e-5)


@given(logit_rows, st.integers(0, 20), st.data())
def test_score_reports_token_and_most_likely_tokens(logits: np.ndarray, top: int, data: st.DataObject) -> None:
    token = data.draw(st.integers(0, len(logits) - 1))
    scored = sampling.score(logits, token, top)
    exact = sampling.log_softmax(logits)
    assert scored.id == token
    assert scored.logprob == exact[token]
    assert scored.top_logprobs == sorted(exact.tolist(), reverse=True)[:top]
    assert exact[scored.top_ids].tolist() == scored.top_logprobs


@given(logit_rows)
def test_greedy_choice_is_argmax_and_keeps_logits(logits: np.ndarray) -> None:
    before = logits.copy()
    assert Sampler(Sampling(temperature=0), (), 0).choose(logits) == int(before.argmax())
    assert logits.tolist() == before.tolist()


@settings(max_examples=30)
@given(logit_rows, st.integers(-(2**63), 2**63), st.floats(1e-4, 2), st.integers(0, 50), st.floats(0, 1))
def test_same_seed_gives_same_tokens(
    logits: np.ndarray, seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    s = Sampling(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)
    first, second = Sampler(s, (), 1), Sampler(s, (), 1)
    assert [first.choose(logits.copy()) for _ in range(5)] == [second.choose(logits.copy()) for _ in range(5)]


def test_draws_differ_between_choices_and_without_seed() -> None:
    logits = np.zeros(1000, np.float32)

    def tokens(sampler: Sampler) -> list[int]:
        return [sampler.choose(logits.copy()) for _ in range(4)]

    assert tokens(Sampler(Sampling(seed=7), (), 0)) != tokens(Sampler(Sampling(seed=7), (), 1))
    assert tokens(Sampler(Sampling(), (), 0)) != tokens(Sampler(Sampling(), (), 0))


def adjusted(s: Sampling, prompt: tuple[int, ...], chosen: tuple[int, ...], logits: np.ndarray) -> np.ndarray:
    """The adjusted logits after the sampler has chosen the tokens `chosen`."""
    sampler = Sampler(s, prompt, 0)
    for token in chosen:
        row = np.zeros(len(logits), np.float32)
        row[token] = 1e4
        sampler.choose(row)
    result = logits.copy()
    sampler.adjust(result)
    return result


def test_presence_and_frequency_penalties_ignore_prompt() -> None:
    logits = np.array([1, 2, -3, 4], np.float32)
    got = adjusted(Sampling(presence_penalty=0.5, frequency_penalty=0.25), (3,), (1, 1, 2), logits)
    assert got.tolist() == [1, 2 - 0.5 - 0.5, -3 - 0.5 - 0.25, 4]


def test_repetition_penalty_includes_prompt() -> None:
    logits = np.array([1, 2, -3, 4], np.float32)
    got = adjusted(Sampling(repetition_penalty=2.0), (3,), (2,), logits)
    assert got.tolist() == [1, 2, -6, 2]


def test_logit_bias_bans_and_forces_tokens() -> None:
    logits = np.array([5, 1, 0], np.float32)
    sampler = Sampler(Sampling(temperature=0, logit_bias={0: -100, 2: 50}), (), 0)
    sampler.adjust(logits)
    assert sampler.choose(logits) == 2


def test_excluded_tokens_are_never_drawn() -> None:
    logits = np.zeros(6, np.float32)
    sampling.exclude(logits, [0, 5])
    sampler = Sampler(Sampling(seed=1), (), 0)
    assert {sampler.choose(logits.copy()) for _ in range(200)} == {1, 2, 3, 4}


@pytest.mark.parametrize("row", [[-np.inf, -np.inf], [np.nan, 1], [np.inf, 1]], ids=["all_excluded", "nan", "infinite"])
def test_choice_without_finite_logit_raises(row: list[float]) -> None:
    with pytest.raises(InvalidRequest, match="No token is possible"):
        Sampler(Sampling(), (), 0).choose(np.array(row, np.float32))
