"""The store of responses."""

from __future__ import annotations

import msgspec
import pytest

from gateway.errors import NotFound
from gateway.generation import TokenLogprob
from gateway.routes.collect import Collected, CollectedChoice
from gateway.routes.responses_api.store import ConversationItem, ResponseStore
from gateway.routes.responses_api.wire import InputItem
from gateway.routes.responses_api.wire_response import Response
from tests.routes.responses_api.helpers import (
    rendering,
)


def response_with_id(id: str, text: str = "x") -> Response:
    response = rendering().whole("m", Collected([CollectedChoice(text=text)]))
    response.id = id
    return response


def item(text: str, id: str | None = None) -> ConversationItem:
    return ConversationItem(InputItem(role="user", content=text, id=id))


def test_store_evicts_the_least_recently_used() -> None:
    store = ResponseStore(max_responses=2)
    for id in ("resp_a", "resp_b"):
        store.put("me", response_with_id(id), ())
    store.get("me", "resp_a")
    store.put("me", response_with_id("resp_c"), ())
    store.put("you", response_with_id("resp_d"), ())  # another owner has another store
    assert store.get("me", "resp_a") and store.get("me", "resp_c") and store.get("you", "resp_d")
    with pytest.raises(NotFound):
        store.get("me", "resp_b")


def test_store_evicts_by_size() -> None:
    store = ResponseStore(max_bytes=10_000)
    for id in ("resp_a", "resp_b"):
        store.put("me", response_with_id(id, "x" * 3000), ())  # counts twice: response and item
    with pytest.raises(NotFound):
        store.get("me", "resp_a")
    store.put("me", response_with_id("resp_c"), (item("x" * 20_000),))
    with pytest.raises(NotFound):
        store.get("me", "resp_c")
    store.put("me", response_with_id("resp_d"), ())  # an evicted response uses no bytes
    assert store.item("me", store.get("me", "resp_d").items[-1].item.id or "") is not None


def test_store_evicts_by_number_of_items() -> None:
    store = ResponseStore(max_items=10)
    for name in "abc":  # five items each: four of the conversation and one of the output
        store.put("me", response_with_id(f"resp_{name}"), tuple(item(name) for _ in range(4)))
    with pytest.raises(NotFound):
        store.get("me", "resp_a")
    assert store.get("me", "resp_b") and store.get("me", "resp_c")


def test_item_is_found_while_a_response_has_it() -> None:
    store = ResponseStore()
    shared, other = item("x", "item_1"), item("y", "item_2")
    store.put("me", response_with_id("resp_a"), (shared, other))
    store.put("me", response_with_id("resp_b"), (shared, shared))
    assert store.item("me", "item_1") is shared and store.item("you", "item_1") is None
    store.delete("me", "resp_a")
    assert store.item("me", "item_1") is shared and store.item("me", "item_2") is None
    store.delete("me", "resp_b")
    assert store.item("me", "item_1") is None


def test_last_stored_item_of_several_with_one_id_is_found_while_it_is_stored() -> None:
    store = ResponseStore()
    first, second = item("first", "item_1"), item("second", "item_1")
    for name, each in (("a", first), ("b", second), ("c", first), ("d", second)):
        store.put("me", response_with_id(f"resp_{name}"), (each,))
        assert store.item("me", "item_1") is each
    store.delete("me", "resp_b")
    assert store.item("me", "item_1") is second
    store.delete("me", "resp_d")
    assert store.item("me", "item_1") is first
    store.delete("me", "resp_a")
    assert store.item("me", "item_1") is first
    store.delete("me", "resp_c")
    assert store.item("me", "item_1") is None


def test_response_stored_again_replaces_the_first() -> None:
    store = ResponseStore()
    for text in "xy":
        store.put("me", response_with_id("resp_a", text), (item(text, f"item_{text}"),))
    assert store.item("me", "item_x") is None and store.item("me", "item_y") is not None
    store.delete("me", "resp_a")
    assert store._owners["me"].used == (0, 0, 0) and not store._owners["me"]._index


def test_log_probabilities_are_kept_in_the_response_and_not_in_its_items() -> None:
    tokens = [TokenLogprob("a", (97,), -1.0)] * 1000
    response = rendering(top_logprobs=0).whole("m", Collected([CollectedChoice(text="a", logprobs=tokens)]))
    store = ResponseStore()
    store.put("me", response, ())
    stored = store.get("me", response.id)
    assert stored.response is response
    assert len(msgspec.json.encode(response)) > 30_000
    assert stored.items[0].size_bytes < 1000
