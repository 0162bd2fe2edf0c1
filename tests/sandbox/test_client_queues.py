"""The order in which clients take turns."""

from __future__ import annotations

from gateway.sandbox.client_queues import ClientQueues


def test_clients_take_turns_and_items_of_a_client_keep_their_order() -> None:
    queues = ClientQueues[str]()
    for item in ("a1", "a2", "a3", "b1", "b2", "c1"):
        queues.put(item[0], item)
    assert [queues.get() for _ in range(3)] == ["a1", "b1", "c1"]
    queues.put("d", "d1")
    assert [queues.get() for _ in range(5)] == ["a2", "b2", "d1", "a3", None]


def test_client_with_new_items_is_behind_the_others() -> None:
    queues = ClientQueues[str]()
    queues.put("a", "a1")
    queues.put("b", "b1")
    assert queues.get() == "a1"
    queues.put("a", "a2")
    assert [queues.get(), queues.get(), queues.get()] == ["b1", "a2", None]
