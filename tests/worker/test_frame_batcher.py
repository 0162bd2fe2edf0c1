"""Tokens frames of one device call become one message, and the order of frames is kept."""

from __future__ import annotations

from gateway.worker.frame_batcher import FrameBatcher
from gateway.worker.frames import Ended, FrameBatch, Message, Prefilled, Tokens, decode_from_worker, encode


def tokens(id: int) -> Tokens:
    return Tokens(id=id, choice=0, ids=[7], device_s=0.1)


def test_tokens_of_one_call_are_one_message_in_order() -> None:
    sent: list[Message] = []
    batcher = FrameBatcher(lambda message: sent.append(decode_from_worker(encode(message))))
    batcher.put(tokens(1))
    batcher.put(tokens(2))
    assert sent == []
    batcher.flush()
    batcher.put(tokens(1))
    batcher.put(Ended(1, "stop"))
    batcher.put(tokens(2))
    batcher.put(tokens(3))
    batcher.put(Prefilled(4, 0.1))
    batcher.flush()
    assert sent == [
        FrameBatch([tokens(1), tokens(2)]),
        tokens(1),
        Ended(1, "stop"),
        FrameBatch([tokens(2), tokens(3)]),
        Prefilled(4, 0.1),
    ]
