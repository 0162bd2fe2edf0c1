"""Render helpers that several APIs share."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import msgspec

from gateway.generation import TokenLogprob
from gateway.routes.wire import TokenLogprobs, TopLogprob

LOGPROB_FLOOR = -9999.0  # OpenAI's value for a token of probability zero; JSON has no minus infinity


_json = msgspec.json.Encoder()


def logprobs_of(tokens: Iterable[TokenLogprob]) -> list[TokenLogprobs]:
    """For a reply. Each is encoded here: the encoder holds the interpreter lock for a whole reply."""
    return [cast(TokenLogprobs, msgspec.Raw(_json.encode(_wire(token)))) for token in tokens]


def _wire(token: TokenLogprob) -> TokenLogprobs:
    tops = [TopLogprob(token=top.token, logprob=max(top.logprob, LOGPROB_FLOOR), bytes=top.bytes) for top in token.top]
    return TokenLogprobs(
        token=token.token, logprob=max(token.logprob, LOGPROB_FLOOR), bytes=token.bytes, top_logprobs=tops
    )
