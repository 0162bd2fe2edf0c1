"""What clients send for embeddings and rankings, recorded from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "body", "model"),
    [
        ("/v1/embeddings", {"input": "x"}, "vectors"),
        ("/v1/embeddings", {"input": "x", "model": ""}, "vectors"),
        ("/api/embed", {"input": "x"}, "vectors"),
        ("/api/embed", {}, "vectors"),
        ("/api/embeddings", {"prompt": "x"}, None),
        ("/v1/rerank", {"query": "x", "documents": ["x"]}, "scorer"),
    ],
)
def test_request_without_a_model_takes_the_only_one_and_an_unknown_name_does_not(
    http: httpx.Client, path: str, body: dict[str, Any], model: str | None
) -> None:
    reply = http.post(path, json=body)
    assert (reply.status_code, reply.json().get("model")) == (200, model), reply.text
    assert http.post(path, json={**body, "model": "text-embedding-3-small"}).status_code == 404


@pytest.fixture(scope="module")
def document(http: httpx.Client) -> dict[str, Any]:
    return dict(http.get("/schema").json())


@pytest.mark.parametrize(("path", "body"), [each[1:] for each in RECORDED], ids=[each[0] for each in RECORDED])
def test_request_of_a_real_client_is_answered(
    http: httpx.Client, document: dict[str, Any], path: str, body: dict[str, Any]
) -> None:
    reply = http.post(path, json=body)
    assert reply.status_code == 200 and "x-gateway-ignored" not in reply.headers, reply.text
    answer = reply.json()
    described = document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema_rs.validate({**described, "components": document["components"]}, answer)
    if "query" in body:
        assert [each["index"] for each in answer["results"]] == [1, 0]
        return
    found = answer.get("data") or answer.get("embeddings") or [answer["embedding"]]
    assert len(found) == (len(body["input"]) if isinstance(body.get("input"), list) else 1)
    assert all(found)
