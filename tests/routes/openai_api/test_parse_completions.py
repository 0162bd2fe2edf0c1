"""A completion request becomes Generations: defaults applied, contradictions refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.tables import Defaults
from gateway.errors import InvalidRequest
from gateway.generation import Generation, Grammar, Text, TokenIds
from gateway.routes.openai_api.parse_completions import completion_generations
from gateway.routes.openai_api.wire_completions import CompletionRequest
from gateway.server.body import parse
from tests.support.json_values import JSON_VALUES

decoder = msgspec.json.Decoder(CompletionRequest)
DEFAULTS = Defaults(max_tokens=99, temperature=0.3, top_p=0.8, top_k=40, min_p=0.1, repetition_penalty=1.1)


def generations(prompt: Any = "a", defaults: Defaults = DEFAULTS, **fields: Any) -> list[Generation]:
    request = parse(msgspec.json.encode({"model": "m", "prompt": prompt, **fields}), decoder)
    return completion_generations(request, defaults, id="cmpl-1")


def generation(prompt: Any = "a", **fields: Any) -> Generation:
    (made,) = generations(prompt, **fields)
    return made


def test_defaults_come_from_the_model_except_the_limit() -> None:
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
def test_prompt_forms(prompt: Any, expected: Any) -> None:
    assert [made.prompt for made in generations(prompt)] == expected


def test_suffix_applies_to_every_text() -> None:
    assert [made.prompt for made in generations(["a", "b"], suffix="z")] == [Text("a", "z"), Text("b", "z")]
    assert generation(suffix="").prompt == Text("a")


def test_logprobs_are_computed_if_sent_or_needed_for_ranking() -> None:
    assert generation(logprobs=0).logprobs == 0
    assert (generation(echo=True).prompt_logprobs, generation(echo=True, logprobs=0).prompt_logprobs) == (False, True)
    ranked = generation(best_of=3, n=2)
    assert (ranked.n, ranked.logprobs) == (3, 0)  # the ranking needs them
    assert (generation(best_of=2, n=2).logprobs, generation(n=2).n) == (None, 2)


def test_vllm_and_llama_cpp_fields_are_read() -> None:
    made = generation(top_k=-1, min_tokens=2, ignore_eos=True, service_tier="flex", guided_regex="[0-9]")
    assert (made.sampling.top_k, made.min_tokens, made.ignore_eos, made.background) == (0, 2, True, True)
    assert made.grammar is not None and made.grammar.kind == "regex" and made.grammar.source == "[0-9]"
    structured = generation(response_format={"type": "json_object"}).grammar
    assert isinstance(structured, Grammar) and structured.kind == "json_object"


PROMPTS = st.text() | st.lists(st.text() | st.integers(0, 9) | st.lists(st.integers(0, 9), max_size=3), max_size=4)
SMALL = {name: st.none() | st.integers(-1, 25) for name in ("n", "best_of", "max_tokens", "logprobs", "min_tokens")}
FLAGS = {name: st.none() | st.booleans() for name in ("echo", "stream", "ignore_eos")}
OTHERS = [field.name for field in msgspec.structs.fields(CompletionRequest)]


@settings(deadline=None, max_examples=300)
@given(
    st.fixed_dictionaries(
        {"prompt": PROMPTS | JSON_VALUES}, optional={**SMALL, **FLAGS, "suffix": st.text(max_size=2)}
    ),
    st.dictionaries(st.sampled_from(OTHERS), JSON_VALUES, max_size=2),
)
def test_any_json_gives_generations_or_invalid_request(sensible: dict[str, Any], anything: dict[str, Any]) -> None:
    try:
        made = completion_generations(
            parse(msgspec.json.encode({**sensible, **anything}), decoder), Defaults(), id="cmpl-1"
        )
    except InvalidRequest as error:
        assert error.message
    else:
        assert made and all(one.n >= 1 and one.max_tokens >= 0 for one in made)
