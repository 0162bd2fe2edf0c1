"""Tokens of one device call travel together, and nothing overtakes them."""

from __future__ import annotations

from gateway.worker.frames import Ended, Message, Prefilled, Together, Tokens, decode_from_worker, encode
from gateway.worker.outbox import Outbox


def tokens(id: int) -> Tokens:
    return Tokens(id=id, choice=0, ids=[7], device_s=0.1)


def test_tokens_of_one_call_are_one_message_and_order_is_kept() -> None:
    sent: list[Message] = []
    outbox = Outbox(lambda message: sent.append(decode_from_worker(encode(message))))
    outbox.put(tokens(1))
    outbox.put(tokens(2))
    assert sent == []
    outbox.flush()
    outbox.put(tokens(1))
    outbox.put(Ended(1, "stop"))
    outbox.put(tokens(2))
    outbox.put(tokens(3))
    outbox.put(Prefilled(4, 0.1))
    outbox.flush()
    assert sent == [
        Together([tokens(1), tokens(2)]),
        tokens(1),
        Ended(1, "stop"),
        Together([tokens(2), tokens(3)]),
        Prefilled(4, 0.1),
    ]
