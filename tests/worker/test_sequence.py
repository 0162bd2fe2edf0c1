"""Log-probabilities, predictions and constraints in a token loop over a real tiny model.

The clock is the test's: a device call takes 1 s, and 1 s more for each prompt token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from gateway.errors import InvalidRequest
from gateway.generation import Grammar
from gateway.sampling import Sampling
from gateway.worker import sampling
from gateway.worker.decoders.base import Logits
from gateway.worker.decoders.cpu import CpuDecoder
from gateway.worker.frames import Ended, Failed, Prefilled, Scored, Tokens
from tests.support.token_loop_fixtures import GREEDY, Bench, random_ids

MakeBench = Callable[..., Bench]
PROMPT = random_ids(20, 2)  # its greedy answer does not begin with the same token twice


# -- log-probabilities -------------------------------------------------------------------------------------------------


def test_logprobs_come_from_raw_logits(make_bench: MakeBench, tiny_decoder: CpuDecoder) -> None:
    cache = tiny_decoder.new_cache()
    bench = make_bench(slots=3)
    request = bench.submit(
        PROMPT,
        max_tokens=5,
        logprobs=3,
        sampling=Sampling(seed=1, temperature=1.7, logit_bias={5: 20.0}, repetition_penalty=1.5),
    )
    bench.finish()
    scored = [entry for frame in bench.of(request, Tokens) for entry in frame.scored]
    tokens = bench.tokens(request)
    rows = tiny_decoder.verify(cache, PROMPT + tokens)[len(PROMPT) - 1 : -1]
    for token, entry, row in zip(tokens, scored, rows, strict=True):
        expected = sampling.score(row, token, 3)
        assert (entry.id, entry.top_ids) == (token, expected.top_ids)
        assert entry.logprob == pytest.approx(expected.logprob, abs=1e-3)


def test_prompt_logprobs_cover_all_tokens_after_first(make_bench: MakeBench, tiny_decoder: CpuDecoder) -> None:
    cache = tiny_decoder.new_cache()
    rows = tiny_decoder.verify(cache, PROMPT).copy()
    bench = make_bench(slots=3)
    bench.answer(PROMPT)  # leaves reusable rows, which have no logits
    request = bench.submit(PROMPT, max_tokens=1, logprobs=2, prompt_logprobs=True)
    bench.finish()
    scored: list[Scored] = [entry for frame in bench.of(request, Prefilled) for entry in frame.prompt_logprobs]
    assert bench.cached(request) == 0
    assert [entry.id for entry in scored] == PROMPT[1:]
    for row, entry in zip(rows, scored, strict=False):
        assert entry == sampling.score(row, entry.id, 2)


# -- predictions -------------------------------------------------------------------------------------------------------


def with_prediction(bench: Bench, prediction: list[int], **options: object) -> tuple[list[int], int, int, int]:
    """The answer, its accepted and rejected tokens, and the device calls after the prefill."""
    before = len(bench.decoder.calls)
    request = bench.submit(PROMPT, prediction=prediction, max_tokens=40, owner=str(before), **options)
    bench.finish()
    frames = [frame for frame in bench.of(request, Tokens) if frame.source == "prediction"]
    accepted, drafted = sum(frame.matched for frame in frames), sum(frame.drafted for frame in frames)
    calls = sum(kind != "prefill" for kind, _ in bench.decoder.calls[before:])
    return bench.tokens(request), accepted, drafted - accepted, calls


SAMPLED = Sampling(seed=3, temperature=1.0, top_p=0.95, frequency_penalty=0.5)


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_right_prediction_keeps_answer_in_fewer_calls(bench: Bench, settings: Sampling) -> None:
    plain = bench.answer(PROMPT, max_tokens=40, sampling=settings)
    answer, accepted, rejected, calls = with_prediction(bench, plain[1:], sampling=settings)
    assert answer == plain
    assert rejected == 0
    assert calls <= 8
    assert accepted == 39 - calls


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_edited_prediction_keeps_answer_and_is_followed_past_edit(bench: Bench, settings: Sampling) -> None:
    plain = bench.answer(PROMPT, max_tokens=40, sampling=settings)
    edited = [*plain[:10], 3, 3, *plain[12:25], *plain[28:]]
    answer, accepted, rejected, calls = with_prediction(bench, edited, sampling=settings)
    assert answer == plain
    assert accepted > 10 and rejected > 0
    assert calls < 30


def test_wrong_prediction_keeps_answer(bench: Bench) -> None:
    plain = bench.answer(PROMPT, max_tokens=40)
    answer, accepted, rejected, _ = with_prediction(bench, random_ids(30, 77))
    assert answer == plain
    assert accepted + rejected < 30


def test_stop_token_inside_draft_ends_answer(bench: Bench) -> None:
    plain = bench.answer(PROMPT, max_tokens=40)
    stop = plain[20]
    expected = plain[: plain.index(stop)]
    request = bench.submit(PROMPT, prediction=plain, max_tokens=40, stop_ids=[stop])
    bench.finish()
    assert bench.tokens(request) == expected
    after = bench.submit(PROMPT + expected + [9, 8], max_tokens=5)
    bench.finish()
    assert bench.tokens(after) == bench.answer(PROMPT + expected + [9, 8], max_tokens=5, owner="fresh")


def test_draft_stays_within_context_and_max_tokens(make_bench: MakeBench) -> None:
    bench = make_bench(context_length=40)
    plain = bench.answer(PROMPT, max_tokens=20)
    request = bench.submit(PROMPT, prediction=plain * 3, max_tokens=20, owner="other")
    bench.finish()
    assert bench.tokens(request) == plain
    assert len(plain) == 20


# -- grammars ----------------------------------------------------------------------------------------------------------


class Only:
    """Permits only the tokens of a fixed answer. `is_forced`: reports them in advance."""

    end_ids: frozenset[int] = frozenset()

    def __init__(self, answer: list[int], is_forced: bool) -> None:
        self.rest = list(answer)
        self.is_forced = is_forced

    def restrict(self, logits: Logits) -> None:
        value = logits[self.rest[0]]
        logits[:] = -np.inf
        logits[self.rest[0]] = value

    def accept(self, token: int) -> None:
        assert token == self.rest.pop(0)

    def forced(self) -> list[int]:
        return self.rest if self.is_forced else []

    @property
    def is_stopped(self) -> bool:
        return not self.rest


@pytest.mark.parametrize(("is_forced", "calls"), [(False, 11), (True, 1)], ids=["masked", "forced"])
def test_constraint_determines_answer(make_bench: MakeBench, is_forced: bool, calls: int) -> None:
    answer = random_ids(12, 8)
    bench = make_bench(make_constraint=lambda grammar: partial(Only, answer, is_forced))
    request = bench.submit(PROMPT, max_tokens=40, grammar=Grammar(kind="regex", source="x"), sampling=Sampling(seed=1))
    bench.finish()
    assert bench.tokens(request) == answer
    assert bench.endings(request) == [Ended(request, "stop")]
    assert sum(kind != "prefill" for kind, _ in bench.decoder.calls) == calls
    assert not any(frame.source == "prediction" for frame in bench.of(request, Tokens))


def test_grammar_that_does_not_compile_is_refused(make_bench: MakeBench) -> None:
    def refuse(grammar: Grammar) -> Callable[[], Only]:
        raise InvalidRequest("unknown rule", param="response_format")

    bench = make_bench(make_constraint=refuse)
    request = bench.submit(PROMPT, grammar=Grammar(kind="regex", source="("))
    assert bench.endings(request) == [Failed(request, "InvalidRequest", "unknown rule", "response_format")]


def test_constraint_without_possible_token_fails_its_request_only(make_bench: MakeBench) -> None:
    class Nothing(Only):
        def restrict(self, logits: Logits) -> None:
            logits[:] = -np.inf

    bench = make_bench(make_constraint=lambda grammar: partial(Nothing, [1], False))
    bad = bench.submit(PROMPT, grammar=Grammar(kind="regex", source="x"))
    good = bench.submit(random_ids(10, 2))
    bench.finish()
    assert [frame.kind for frame in bench.endings(bad)] == ["InvalidRequest"]
    assert bench.endings(good) == [Ended(good, "length")]


@pytest.mark.parametrize("left", [22, 12, 3])
def test_failing_draft_fails_its_request_only(make_bench: MakeBench, left: int) -> None:
    class Broken(Only):
        def forced(self) -> list[int]:
            if len(self.rest) < left:
                raise InvalidRequest("too complex", param="grammar")
            return []

    bench = make_bench(make_constraint=lambda grammar: partial(Broken, random_ids(25, 8), False))
    for client, size in (("a", 10), ("b", 40)):  # the call is for the other request, and for the failing one
        bad = bench.submit(PROMPT, grammar=Grammar(kind="regex", source="x"), max_tokens=30, client=client)
        good = bench.submit(random_ids(size, 2), max_tokens=30, client="good")
        bench.finish()
        assert [frame.kind for frame in bench.endings(bad)] == ["InvalidRequest"]
        assert bench.endings(good) == [Ended(good, "length")]
