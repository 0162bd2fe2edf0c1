"""A completion request as Generations: every default resolved, whatever contradicts itself refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import Defaults
from gateway.errors import InvalidRequest
from gateway.generation import Generation, Grammar, Text, TokenIds
from gateway.routes.openai_api.parse_completions import completion_generations
from gateway.routes.openai_api.wire_completions import CompletionRequest
from gateway.server.body import parse

decoder = msgspec.json.Decoder(CompletionRequest)
DEFAULTS = Defaults(max_tokens=99, temperature=0.3, top_p=0.8, top_k=40, min_p=0.1, repetition_penalty=1.1)


def generations(prompt: Any = "a", defaults: Defaults = DEFAULTS, **fields: Any) -> list[Generation]:
    request = parse(msgspec.json.encode({"model": "m", "prompt": prompt, **fields}), decoder)
    return completion_generations(request, defaults, id="cmpl-1")


def generation(prompt: Any = "a", **fields: Any) -> Generation:
    (made,) = generations(prompt, **fields)
    return made


def test_defaults_are_the_models_but_for_the_limit() -> None:
    made = generation()
    assert (made.max_tokens, made.n, made.logprobs, made.prompt_logprobs) == (16, 1, None, False)
    assert (made.sampling.temperature, made.sampling.top_p, made.sampling.top_k) == (0.3, 0.8, 40)
    assert (made.sampling.min_p, made.sampling.repetition_penalty) == (0.1, 1.1)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", [Text("a")]),
        (["a", "b"], [Text("a"), Text("b")]),
        ([1, 2], [TokenIds((1, 2))]),
        ([[1, 2], [3]], [TokenIds((1, 2)), TokenIds((3,))]),
        (["", "b"], [Text(""), Text("b")]),
    ],
)
def test_prompts(prompt: Any, expected: Any) -> None:
    assert [made.prompt for made in generations(prompt)] == expected


def test_suffix_goes_with_every_text() -> None:
    assert [made.prompt for made in generations(["a", "b"], suffix="z")] == [Text("a", "z"), Text("b", "z")]
    assert generation(suffix="").prompt == Text("a")


def test_scores_are_asked_for_where_they_are_told_or_needed() -> None:
    assert generation(logprobs=0).logprobs == 0
    assert (generation(echo=True).prompt_logprobs, generation(echo=True, logprobs=0).prompt_logprobs) == (False, True)
    ranked = generation(best_of=3, n=2)
    assert (ranked.n, ranked.logprobs) == (3, 0)  # without them there is no best
    assert (generation(best_of=2, n=2).logprobs, generation(n=2).n) == (None, 2)


def test_extra_fields_of_local_clients() -> None:
    made = generation(top_k=-1, min_tokens=2, ignore_eos=True, service_tier="flex", guided_regex="[0-9]")
    assert (made.sampling.top_k, made.min_tokens, made.ignore_eos, made.background) == (0, 2, True, True)
    assert made.grammar is not None and made.grammar.kind == "regex" and made.grammar.source == "[0-9]"
    structured = generation(response_format={"type": "json_object"}).grammar
    assert isinstance(structured, Grammar) and structured.kind == "json_object"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
PROMPTS = st.text() | st.lists(st.text() | st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=3), max_size=4)
SMALL = {name: st.none() | st.integers(-1, 25) for name in ("n", "best_of", "max_tokens", "logprobs", "min_tokens")}
FLAGS = {name: st.none() | st.booleans() for name in ("echo", "stream", "ignore_eos")}
OTHERS = [field.name for field in msgspec.structs.fields(CompletionRequest)]


@settings(deadline=None, max_examples=300)
@given(
    st.fixed_dictionaries({"prompt": PROMPTS | ANYTHING}, optional={**SMALL, **FLAGS, "suffix": st.text(max_size=2)}),
    st.dictionaries(st.sampled_from(OTHERS), ANYTHING, max_size=2),
)
def test_whatever_a_client_sends_is_generations_or_an_invalid_request(
    sensible: dict[str, Any], anything: dict[str, Any]
) -> None:
    try:
        made = completion_generations(
            parse(msgspec.json.encode({**sensible, **anything}), decoder), Defaults(), id="cmpl-1"
        )
    except InvalidRequest as error:
        assert error.message
    else:
        assert made and all(one.n >= 1 and one.max_tokens >= 0 for one in made)
