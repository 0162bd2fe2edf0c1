"""Render helpers that several APIs share."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.generation import TokenLogprob
from gateway.routes.wire import TokenLogprobs, TopLogprob

LOGPROB_FLOOR = -9999.0  # OpenAI's value for a token of probability zero; JSON has no minus infinity


def logprobs_of(tokens: Iterable[TokenLogprob]) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(
            token=token.token,
            logprob=max(token.logprob, LOGPROB_FLOOR),
            bytes=token.bytes,
            top_logprobs=[
                TopLogprob(token=top.token, logprob=max(top.logprob, LOGPROB_FLOOR), bytes=top.bytes)
                for top in token.top
            ],
        )
        for token in tokens
    ]
