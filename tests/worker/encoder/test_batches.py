"""BatchQueue: lengths, padding, the turns of clients, cancels."""

from __future__ import annotations

from gateway.worker.encoder.batches import BatchQueue
from gateway.worker.frames import Embed


def frame(id: int, *lengths: int, client: str = "", background: bool = False) -> Embed:
    return Embed(id=id, ids=[[7] * length for length in lengths], client=client, background=background)


def drained(queue: BatchQueue) -> list[list[tuple[int, int]]]:
    """(id of the request, tokens) of each text, for each batch."""
    batches = []
    while not queue.is_empty:
        batches.append([(item.request.frame.id, len(item.text.ids)) for item in queue.next_batch()])
    return batches


def test_every_text_is_in_one_batch_and_padding_is_limited() -> None:
    queue = BatchQueue(1024)
    lengths = [[1 + (37 * k * k) % 500 for k in range(number)] for number in (300, 40, 1)]
    for id, each in enumerate(lengths, 1):
        queue.add(frame(id, *each, client=str(id)), 0.0)
    batches = drained(queue)
    for id, each in enumerate(lengths, 1):
        assert sorted(tokens for batch in batches for owner, tokens in batch if owner == id) == sorted(each)
    for batch in batches:
        width = max(tokens for _, tokens in batch)
        assert len(batch) * width <= 1024
        assert sum(max(0, width - tokens - 8) for _, tokens in batch) <= 0.125 * width * len(batch)


def test_text_above_the_limit_is_alone() -> None:
    queue = BatchQueue(64)
    queue.add(frame(1, 100, 60, 2), 0.0)
    assert drained(queue) == [[(1, 100)], [(1, 60)], [(1, 2)]]


def test_clients_take_turns_and_a_short_request_does_not_wait_for_a_long_one() -> None:
    queue = BatchQueue(64)
    queue.add(frame(1, *[64] * 50, client="long"), 0.0)
    queue.next_batch()
    queue.add(frame(2, 8, client="short"), 0.0)
    assert [item.request.frame.id for item in queue.next_batch() + queue.next_batch()] == [1, 2]


def test_requests_of_all_clients_share_a_batch() -> None:
    queue = BatchQueue(64)
    for id in (1, 2, 3):
        queue.add(frame(id, 16, client=str(id)), 0.0)
    assert drained(queue) == [[(1, 16), (2, 16), (3, 16)]]


def test_background_comes_last() -> None:
    queue = BatchQueue(8)
    queue.add(frame(1, 8, client="a", background=True), 0.0)
    queue.add(frame(2, 8, 8, client="b"), 0.0)
    assert drained(queue) == [[(2, 8)], [(2, 8)], [(1, 8)]]


def test_cancelled_request_leaves_the_queue() -> None:
    queue = BatchQueue(8)
    queue.add(frame(1, 8, 8), 0.0)
    queue.add(frame(2, 8), 0.0)
    queue.next_batch()
    queue.cancel(1)
    assert drained(queue) == [[(2, 8)]]
