"""Counts and limits: usage, a prompt that is too long, a stream that is cancelled. All of it is the gateway's part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.commands.verify.check import Check
from gateway.commands.verify.outcome import NotApplicable, promise
from gateway.commands.verify.peer import Peer, Reply

_ASK = "Describe a cat in one sentence."
_GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
_MOST_WORDS = 400_000  # of a prompt


def checks() -> Iterator[Check]:
    yield Check("usage", "the sum", lambda peer: _sum(peer.chat(_ASK, **_GREEDY)))
    yield Check("usage", "the sum in a stream", lambda peer: _sum(peer.stream(_ASK, **_GREEDY)))
    yield Check("usage", "the same with and without a stream", _same)
    yield Check("usage", "max_tokens", _limited)
    yield Check("usage", "a longer prompt", _longer)
    yield Check("context", "a prompt that is too long", _too_long)
    yield Check("context", "an answer after that", _answers)
    yield Check("cancel", "an answer after a stream that was left", _cancelled)


def _counts(reply: Reply) -> tuple[int, int, int]:
    promise(reply.usage is not None, "the reply has no usage")
    return reply.usage or (0, 0, 0)


def _sum(reply: Reply) -> None:
    prompt, completion, total = _counts(reply)
    promise(prompt > 0 and completion > 0, f"{prompt} prompt and {completion} completion tokens")
    promise(prompt + completion == total, f"{prompt} + {completion} tokens are not {total}")


def _same(peer: Peer) -> None:
    whole, streamed = peer.chat(_ASK, **_GREEDY), peer.stream(_ASK, **_GREEDY)
    own, other = _counts(whole), _counts(streamed)
    promise(own[0] == other[0], f"{own[0]} prompt tokens, and {other[0]} in a stream")
    if whole.text == streamed.text:
        promise(own == other, f"{own[1]} completion tokens, and {other[1]} in a stream")


def _limited(peer: Peer) -> None:
    reply = peer.chat("Count from one to a hundred in words.", temperature=0, max_tokens=7)
    completion = _counts(reply)[1]
    promise(completion <= 7, f"{completion} tokens with max_tokens = 7")
    promise(reply.finish != "length" or completion == 7, f"finish reason 'length' after {completion} of 7 tokens")


def _longer(peer: Peer) -> None:
    short, long = (_counts(peer.chat(_ASK * times, temperature=0, max_tokens=1))[0] for times in (1, 8))
    promise(long > short, f"{short} prompt tokens, and {long} for eight times the text")


def _too_long(peer: Peer) -> None:
    if not peer.context or peer.context > _MOST_WORDS:
        raise NotApplicable("the server does not say how long the context is" if not peer.context else "too long")
    status, code = peer.refusal("word " * (peer.context + 64), max_tokens=1)
    is_named = status == 400 and code == "context_length_exceeded"
    promise(is_named, f"more than {peer.context} tokens get {status} {code} in place of 400 context_length_exceeded")


def _answers(peer: Peer) -> None:
    promise(_counts(peer.chat(_ASK, **_GREEDY))[1] > 0, "no answer")


def _cancelled(peer: Peer) -> None:
    peer.cancel("Count from one to a thousand in words.", 3, max_tokens=2000)
    _answers(peer)
