"""The store of responses."""

from __future__ import annotations

import pytest

from gateway.errors import NotFound
from gateway.routes.collect import Collected, CollectedChoice
from gateway.routes.responses_api.store import ResponseStore
from gateway.routes.responses_api.wire import InputItem
from gateway.routes.responses_api.wire_response import Response
from tests.routes.responses_api.helpers import (
    rendering,
)


def response_with_id(id: str, text: str = "x") -> Response:
    response = rendering().whole("m", Collected([CollectedChoice(text=text)]))
    response.id = id
    return response


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
    store.put("me", response_with_id("resp_c"), (InputItem(role="user", content="x" * 20_000),))
    with pytest.raises(NotFound):
        store.get("me", "resp_c")
    store.put("me", response_with_id("resp_d"), ())  # an evicted response uses no bytes
    assert store.item("me", store.get("me", "resp_d").items[-1].id or "") is not None
