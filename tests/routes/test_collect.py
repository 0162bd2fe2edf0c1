"""collect: the events of an answer that is not streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.engines.context import MAX_LOGPROBS
from gateway.errors import InvalidRequest
from gateway.generation import Event, Started, TextDelta, TokenLogprob
from gateway.routes.collect import collect

TOP = tuple(TokenLogprob("a", (97,), -1.0) for _ in range(20))
TOKENS = (TokenLogprob("a", (97,), -1.0, TOP),) * 1000


async def prompts(count: int) -> AsyncIterator[Event]:
    for _ in range(count):
        yield Started(prompt_tokens=1000, prompt_logprobs=TOKENS)
        yield TextDelta("a", logprobs=TOKENS)


def test_log_probabilities_of_a_list_of_prompts_are_limited_together() -> None:
    allowed = MAX_LOGPROBS // (2 * 21 * 1000)
    assert asyncio.run(collect(prompts(allowed), 1)).logprobs == allowed * 2 * 21 * 1000
    with pytest.raises(InvalidRequest, match="Send fewer prompts at once, or stream") as refused:
        asyncio.run(collect(prompts(allowed + 1), 1))
    assert refused.value.param == "logprobs"
