"""Constrained decoding in a token loop with a real decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gateway.generation import Grammar
from gateway.sampling import Sampling
from gateway.text.tokens import TextTokenizer
from gateway.worker.frames import Ended, Tokens
from gateway.worker.grammar.compiler import GrammarCompiler
from gateway.worker.grammar.constraint import GrammarConstraint
from tests.support.structured import SCHEMAS, WORD, faults, lark, regex, schema_grammar, some
from tests.support.token_loop_fixtures import GREEDY, Bench

PROMPT = [40, 41, 42, 43]

MakeBench = Callable[..., Bench]


@pytest.fixture
def bench(make_bench: MakeBench, grammars: GrammarCompiler) -> Bench:
    return make_bench(make_constraint=lambda grammar: partial(grammars.compile(grammar).constraint, grammar.param))


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(temperature=1.5, seed=1),
        Sampling(temperature=2.0, seed=2, top_p=0.5),
        Sampling(temperature=2.0, seed=3, top_k=5, min_p=0.1),
        Sampling(temperature=1.0, seed=4, logit_bias=dict.fromkeys(range(40), 100.0)),
        Sampling(temperature=1.0, seed=5, presence_penalty=2, frequency_penalty=2, repetition_penalty=1.5),
        Sampling(temperature=0, dry_multiplier=5.0, dry_allowed_length=1),
    ],
    ids=str,
)
def test_answer_validates_with_any_sampling(bench: Bench, tokens: TextTokenizer, sampling: Sampling) -> None:
    schema = {"properties": {"n": {"enum": [1, None, "x"]}, "w": some(WORD, 1, 3)}, "required": ["n", "w"]}
    request = bench.submit(PROMPT, max_tokens=200, grammar=schema_grammar(schema), sampling=sampling)
    bench.finish()
    assert bench.endings(request) == [Ended(request, "stop")]
    assert faults(schema, tokens.decode(bench.tokens(request))) == []


def test_any_end_token_ends_answer(bench: Bench) -> None:
    """Each end token of the model ends the answer, also one that the request does not name."""
    bias = {2: 100.0}
    request = bench.submit(
        PROMPT, grammar=regex("[a-z]*"), sampling=Sampling(temperature=0, logit_bias=bias), stop_ids=[2, 0]
    )
    bench.finish()
    assert bench.endings(request) == [Ended(request, "stop", counted_stop=1)] and bench.tokens(request) == []


def test_ignore_eos_continues_until_grammar_ends(bench: Bench, tokens: TextTokenizer) -> None:
    bias = Sampling(temperature=0, logit_bias={2: 100.0, 0: 100.0})
    free = bench.submit(PROMPT, grammar=regex("[a-z]*"), sampling=bias, max_tokens=5)
    fixed = bench.submit(PROMPT, grammar=regex("[a-z]{3}"), sampling=bias, max_tokens=5)
    bench.finish()
    assert bench.endings(free) == [Ended(free, "length")]
    assert bench.endings(fixed) == [Ended(fixed, "stop")]
    assert len(tokens.decode(bench.tokens(fixed))) == 3


def test_min_tokens_yields_to_grammar(bench: Bench) -> None:
    bias = Sampling(temperature=0, logit_bias={2: 100.0})
    options: dict[str, Any] = {"sampling": bias, "stop_ids": [2, 0], "min_tokens": 4, "max_tokens": 20}
    free = bench.submit(PROMPT, grammar=regex("[a-z]*"), **options)
    only = bench.submit(PROMPT, grammar=lark('start: "a" | "b" TAIL\nTAIL: /[x]{0}/'), **options)
    bench.finish()
    assert len(bench.tokens(free)) == 4
    assert len(bench.tokens(only)) == 1 and isinstance(bench.endings(only)[0], Ended)


def test_max_tokens_cuts_answer(bench: Bench) -> None:
    request = bench.submit(PROMPT, max_tokens=3, grammar=schema_grammar(SCHEMAS["person"]))
    bench.finish()
    assert bench.endings(request) == [Ended(request, "length")] and len(bench.tokens(request)) == 3


def test_forced_tokens_share_device_calls(bench: Bench, tokens: TextTokenizer) -> None:
    text = json.dumps({"name": "The quick brown fox", "numbers": [1, 2, 3]})
    request = bench.submit(PROMPT, max_tokens=100, grammar=schema_grammar({"const": json.loads(text)}))
    bench.finish()
    assert tokens.decode(bench.tokens(request)) == text
    assert len(bench.decoder.calls) <= 4 < len(bench.tokens(request))
    assert not any(frame.source == "prediction" for frame in bench.of(request, Tokens))


@pytest.mark.parametrize("seed", range(5))
def test_forced_drafts_keep_answer(make_bench: MakeBench, grammars: GrammarCompiler, seed: int) -> None:
    class Silent(GrammarConstraint):
        def forced(self) -> list[int]:
            return []

    def make(grammar: Grammar) -> GrammarConstraint:
        constraint = grammars.compile(grammar).constraint("p")
        constraint.__class__ = kinds.pop()
        return constraint

    kinds: list[type[GrammarConstraint]] = [GrammarConstraint, Silent]
    bench = make_bench(make_constraint=lambda grammar: partial(make, grammar), prefix_cache=False, lookup=False)
    properties = {"value": {"type": "integer", "maximum": 999}, "numbers": some(WORD, 1, 2)}
    grammar = schema_grammar({"properties": properties, "required": ["value", "numbers"]})
    options: dict[str, Any] = {"max_tokens": 100, "sampling": Sampling(temperature=1.5, seed=seed)}
    silent = bench.answer(PROMPT, grammar=grammar, **options)
    assert not any(kind == "verify" for kind, _ in bench.decoder.calls)
    assert bench.answer(PROMPT, grammar=grammar, **options) == silent
    assert any(kind == "verify" for kind, _ in bench.decoder.calls)


def test_each_choice_has_own_constraint(bench: Bench, tokens: TextTokenizer) -> None:
    request = bench.submit(
        PROMPT, n=4, max_tokens=100, grammar=schema_grammar(SCHEMAS["shape"]), sampling=Sampling(seed=1)
    )
    bench.finish()
    texts = [tokens.decode(bench.tokens(request, choice)) for choice in range(4)]
    ended = {frame.choice: frame.reason for frame in bench.of(request, Ended)}
    assert len(set(texts)) > 1
    assert all(reason == "length" or not faults(SCHEMAS["shape"], texts[i]) for i, reason in ended.items())


def test_logprobs_come_from_raw_logits(bench: Bench) -> None:
    request = bench.submit(PROMPT, logprobs=5, max_tokens=4, grammar=regex("[0-9]+"))
    bench.finish()
    free = bench.submit(PROMPT, logprobs=5, max_tokens=1)
    bench.finish()
    (constrained, *_), (plain,) = (
        [scored for frame in bench.of(each, Tokens) for scored in frame.scored] for each in (request, free)
    )
    assert constrained.top_ids == plain.top_ids and constrained.top_logprobs == pytest.approx(plain.top_logprobs)
    assert constrained.id not in constrained.top_ids or constrained.logprob in constrained.top_logprobs


def test_prediction_under_grammar_keeps_answer(bench: Bench, tokens: TextTokenizer) -> None:
    schema = {"properties": {"words": some(WORD, 3, 3)}, "required": ["words"]}
    options: dict[str, Any] = {"max_tokens": 100, "grammar": schema_grammar(schema)}
    plain = bench.answer(PROMPT, **options)
    assert bench.answer(PROMPT, prediction=plain, **options) == plain
    wrong = tokens.encode('{"words": ["other", "text"]}')
    assert bench.answer(PROMPT, prediction=wrong, **options) == plain


def test_grammar_that_fails_during_answer_fails_only_its_request(bench: Bench) -> None:
    """Too many parser items in one step: detected only when the answer reaches that step."""
    rules = "".join(f'r{i}: "a" | "b" r{i} "c" | "d" r{i}\n' for i in range(800))
    bomb = lark(f'start: /[xy]{{20}}/ ({"|".join(f"r{i}" for i in range(800))}) "e"\n{rules}')
    one, other = bench.submit(PROMPT, max_tokens=50, grammar=bomb), bench.submit(PROMPT, max_tokens=50)
    bench.finish()
    (failed,) = bench.endings(one)
    assert (failed.kind, failed.param) == (
        "InvalidRequest",
        "p",
    ) and "too many possible continuations" in failed.message
    assert isinstance(bench.endings(other)[0], Ended)
