"""A short request of the gateway itself to a server that was down, so that no request of a user is the test."""

from __future__ import annotations

import asyncio

from gateway.engines.upstream import refusals
from gateway.engines.upstream.attempt import Attempt
from gateway.generation import Chat, Event, Generation, Message, Meter, Prompt, Text
from gateway.sampling import Sampling

_TOKENS = 4
_TEXT = "Hello"


class _Discard:
    """An Emit without a reader."""

    def __call__(self, event: Event) -> None: ...

    def begin(self) -> None: ...

    async def drain(self) -> None: ...


def hello(name: str, *, is_chat: bool) -> Generation:
    """A chat or a text, as the requests of users are: a server may have only one of the endpoints."""
    prompt: Prompt = Chat(messages=(Message(role="user", content=_TEXT),)) if is_chat else Text(_TEXT)
    return Generation(
        id=f"trial-{name}", model=name, prompt=prompt, sampling=Sampling(temperature=0.0), max_tokens=_TOKENS
    )


async def try_out(name: str, attempt: Attempt, limit_s: float) -> None:
    """Return when the whole answer is there. Raises GatewayError."""
    try:
        async with asyncio.timeout(limit_s), attempt:
            await attempt.rest(Meter(), _Discard())
    except TimeoutError:
        raise refusals.silent(name) from None
