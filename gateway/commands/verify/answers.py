"""Text: stop strings, the reasoning apart from the answer, the system prompt, conversations of several turns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from gateway.commands.verify.check import Check
from gateway.commands.verify.outcome import NotApplicable, expect, promise
from gateway.commands.verify.peer import Message, Peer, Reply

_COUNT = "Count from one to ten in words, separated by commas."
_PUZZLE = "Tom has 3 apples and buys 4 more. How many apples has he? Think about it first."
_MARKS = ("<think>", "</think>")
_MOST_REASONING = 1024  # tokens


def checks() -> Iterator[Check]:
    yield Check("stop", "one string", lambda peer: _stopped(peer, 1, is_stream=False))
    yield Check("stop", "four strings", lambda peer: _stopped(peer, 4, is_stream=False))
    yield Check("stop", "in a stream", lambda peer: _stopped(peer, 1, is_stream=True))
    yield Check("stop", "a string that does not come", _unstopped)
    yield Check("reasoning", "apart from the answer", lambda peer: _reasoned(peer.chat(_PUZZLE, **_LONG)))
    yield Check("reasoning", "apart from the answer in a stream", lambda peer: _reasoned(peer.stream(_PUZZLE, **_LONG)))
    yield Check("reasoning", "sent back", _reasoning_sent_back)
    yield Check("system", "role system", partial(_instructed, role="system"))
    yield Check("system", "role developer", partial(_instructed, role="developer"))
    yield Check("system", "language", _in_french)
    yield Check("turns", "a name", partial(_remembered, fact="My name is Ada.", what="name", word="ada"))
    yield Check(
        "turns", "a number", partial(_remembered, fact="My table has number 42.", what="table's number", word="42")
    )
    yield Check("turns", "content in parts", _parts)


_LONG: dict[str, Any] = {"max_tokens": _MOST_REASONING}


def _stopped(peer: Peer, count: int, *, is_stream: bool) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 48}
    whole = peer.chat(_COUNT, **options).text
    middle = len(whole) // 2
    stop = whole[middle : middle + 4]
    expect(len(stop) == 4, f"an answer that is too short for a stop string: {whole!r}")
    stops = [stop, *[f"\u2042{number}" for number in range(1, count)]]
    send = peer.stream if is_stream else peer.chat
    reply = send(_COUNT, stop=stops if count > 1 else stop, **options)
    promise(stop not in reply.text, f"the stop string {stop!r} is in the answer: {reply}")
    is_same = peer.chat(_COUNT, **options).text == whole  # else nothing can be compared
    promise(reply.text == whole[: whole.index(stop)] or not is_same, f"not the text before {stop!r}: {reply}")
    promise(reply.finish == "stop" or not is_same, f"stopped with the finish reason {reply.finish!r}")


def _unstopped(peer: Peer) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    whole, reply = peer.chat(_COUNT, **options), peer.chat(_COUNT, stop=["\u2042"], **options)
    if peer.chat(_COUNT, **options).text == whole.text:
        promise(reply.text == whole.text and reply.finish == whole.finish, f"not {whole}, but {reply}")


def _reasoned(reply: Reply) -> None:
    _apart(reply)
    expect(reply.finish != "length", f"reasoning that does not end in {_MOST_REASONING} tokens")
    expect("7" in reply.text or "seven" in reply.text.lower(), f"not 7, but {reply}")


def _reasoning_sent_back(peer: Peer) -> None:
    """Clients send the whole message of the assistant back."""
    first: Message = {"role": "assistant", "content": "He has 7 apples.", "reasoning_content": "3 + 4 = 7."}
    last: Message = {"role": "user", "content": "And with two more? Answer with the number."}
    _apart(peer.chat([{"role": "user", "content": _PUZZLE}, first, last], **_LONG))


def _apart(reply: Reply) -> None:
    """The reasoning has its own field."""
    promise(reply.text or reply.reasoning, "the answer is empty")
    promise(not any(mark in reply.text for mark in _MARKS), f"the reasoning is in the answer: {reply}")
    promise(not any(mark in reply.reasoning for mark in _MARKS), f"marks are in the reasoning: {reply.reasoning!r}")
    if not reply.reasoning:
        raise NotApplicable("the model does not reason")


def _instructed(peer: Peer, role: str) -> None:
    rule: Message = {"role": role, "content": "Whatever the user writes, answer with the one word BANANA."}
    reply = peer.chat([rule, {"role": "user", "content": "What is the capital of France?"}])
    expect("banana" in reply.text.lower(), f"not BANANA, but {reply}")


def _in_french(peer: Peer) -> None:
    rule: Message = {"role": "system", "content": "Answer in French."}
    reply = peer.chat([rule, {"role": "user", "content": "What is the opposite of yes? One word."}])
    expect("non" in reply.text.lower(), f"not 'non', but {reply}")


def _remembered(peer: Peer, fact: str, what: str, word: str) -> None:
    turns: list[Message] = [
        {"role": "user", "content": fact},
        {"role": "assistant", "content": "I will remember that."},
        {"role": "user", "content": "Thank you. What is 2 + 2?"},
        {"role": "assistant", "content": "4."},
        {"role": "user", "content": f"What is my {what}?"},
    ]
    reply = peer.chat(turns)
    expect(word in reply.text.lower(), f"not {word!r}, but {reply}")


def _parts(peer: Peer) -> None:
    """The text of a message in several parts, as editors send files."""
    parts = [{"type": "text", "text": "The word is kiwi."}, {"type": "text", "text": "Repeat the word."}]
    reply = peer.chat([{"role": "user", "content": parts}])
    expect("kiwi" in reply.text.lower(), f"not 'kiwi', but {reply}")
