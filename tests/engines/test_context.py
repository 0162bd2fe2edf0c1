"""max_answer_tokens: the one check of the context length in the gateway process."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from gateway.engines.context import MAX_LOGPROBS, answer_reserve, check_logprobs, max_answer_tokens
from gateway.errors import ContextLengthExceeded, InvalidRequest
from gateway.generation import UNLIMITED, Chat, Generation, Prompt, Text

TEXT = Text("x")


def generation(max_tokens: int, prompt: Prompt = TEXT) -> Generation:
    return Generation(id="r", model="m", prompt=prompt, max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("max_tokens", "prompt_tokens", "expected"), [(64, 10, 64), (64, 90, 10), (64, 99, 1), (0, 100, 0), (0, 10, 0)]
)
def test_max_answer_tokens_is_request_limit_or_rest_of_context(
    max_tokens: int, prompt_tokens: int, expected: int
) -> None:
    assert max_answer_tokens(generation(max_tokens), prompt_tokens, 100) == expected


@pytest.mark.parametrize(("max_tokens", "prompt_tokens"), [(1, 100), (64, 5000), (0, 101)])
def test_prompt_without_space_for_an_answer_is_refused(max_tokens: int, prompt_tokens: int) -> None:
    with pytest.raises(ContextLengthExceeded) as refused:
        max_answer_tokens(generation(max_tokens), prompt_tokens, 100)
    assert refused.value.message == (
        f"This model's maximum context length is 100 tokens. However, your prompt has {prompt_tokens} tokens. "
        "Please reduce its length."
    )
    assert refused.value.param == "prompt"


def test_refusal_of_chat_names_messages() -> None:
    with pytest.raises(ContextLengthExceeded) as refused:
        max_answer_tokens(generation(1, Chat(messages=())), 100, 100)
    assert refused.value.param == "messages"


def test_refusal_of_a_shortened_chat_names_what_is_left() -> None:
    shortened = replace(generation(1, Chat(messages=())), truncation=True)
    with pytest.raises(
        ContextLengthExceeded, match=r"your prompt has 105 tokens without its 6 oldest messages\. Shorten"
    ):
        max_answer_tokens(shortened, 105, 100, dropped=6)


@pytest.mark.parametrize(
    ("max_tokens", "prompt", "expected"),
    [(10, Chat(messages=()), 10), (99, Chat(messages=()), 50), (UNLIMITED, Chat(messages=()), 25), (10, TEXT, None)],
)
def test_reserve_is_the_limit_and_at_most_half_of_the_context(
    max_tokens: int, prompt: Prompt, expected: int | None
) -> None:
    assert answer_reserve(replace(generation(max_tokens, prompt), truncation=True), 100) == expected
    assert answer_reserve(generation(max_tokens, prompt), 100) is None


@pytest.mark.parametrize(
    ("n", "max_tokens", "logprobs", "echo", "values"),
    [(128, 400, 20, False, 1_075_200), (1, 100_000, 5, True, 5_999_994), (2, 62_501, 1, False, 250_004)],
)
def test_more_log_probabilities_than_the_gateway_keeps_are_refused(
    n: int, max_tokens: int, logprobs: int, echo: bool, values: int
) -> None:
    request = replace(generation(max_tokens), n=n, logprobs=logprobs, prompt_logprobs=echo)
    with pytest.raises(InvalidRequest, match=f"asks for up to {values} log-prob.*Reduce max_tokens, n or") as refused:
        max_answer_tokens(request, 900_000 if echo else 10, 999_999)
    assert refused.value.param == "logprobs"


def test_only_tokens_that_the_context_permits_count() -> None:
    assert max_answer_tokens(replace(generation(10**9), logprobs=20), 10, 8192) == 8182
    assert max_answer_tokens(replace(generation(10**9), n=128), 10, 10**6) == 10**6 - 10
    check_logprobs(replace(generation(1), logprobs=0), MAX_LOGPROBS)
