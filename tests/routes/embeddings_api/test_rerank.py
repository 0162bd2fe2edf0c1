"""POST /v1/rerank on a real socket, with a scripted cross-encoder and a scripted encoder."""

from __future__ import annotations

from operator import mul

import httpx
import pytest

from tests.support.server import error_of

QUERY = "capital of France"
DOCUMENTS = ["A cat sleeps.", "The capital of France is Paris.", "Berlin is a capital."]
RANKING = [(1, 1.0), (2, 1 / 3), (0, 0.0)]


def ranking_of(http: httpx.Client, **fields: object) -> list[tuple[int, float]]:
    reply = http.post("/v1/rerank", json={"model": "scorer", "query": QUERY, "documents": DOCUMENTS, **fields})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body["results"] == body["data"] and body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 0
    return [(each["index"], pytest.approx(each["relevance_score"])) for each in body["results"]]


def test_documents_are_in_the_order_of_their_scores(http: httpx.Client) -> None:
    assert ranking_of(http) == RANKING
    assert ranking_of(http, top_n=2) == ranking_of(http, top_k=2) == RANKING[:2]
    assert ranking_of(http, top_n=100) == RANKING
    assert ranking_of(http, documents=[{"text": text} for text in DOCUMENTS]) == RANKING
    assert ranking_of(http, documents=["x", "y", "x"]) == [(0, 0.0), (1, 0.0), (2, 0.0)]


def test_documents_are_sent_back_on_request(http: httpx.Client) -> None:
    body = {"model": "scorer", "query": QUERY, "documents": [DOCUMENTS[0], {"text": DOCUMENTS[1]}]}
    assert "document" not in http.post("/rerank", json=body).json()["results"][0]
    results = http.post("/v2/rerank", json={**body, "return_documents": True}).json()["results"]
    assert [each["document"] for each in results] == [{"text": DOCUMENTS[1]}, {"text": DOCUMENTS[0]}]


def test_embedding_model_ranks_by_the_cosine(http: httpx.Client) -> None:
    def vectors(texts: list[str], purpose: str) -> list[list[float]]:
        body = {"model": "vectors", "input": texts, "input_type": purpose}
        return [each["embedding"] for each in http.post("/v1/embeddings", json=body).json()["data"]]

    [query], documents = vectors([QUERY], "query"), vectors(DOCUMENTS, "document")
    cosines = [sum(map(mul, query, each)) for each in documents]
    expected = sorted(enumerate(cosines), key=lambda each: -each[1])
    assert ranking_of(http, model="vectors") == [(index, pytest.approx(cosine)) for index, cosine in expected]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["a", ""]}, "documents.1"),
        ({"documents": ["a", {"text": ""}]}, "documents.1"),
        ({"documents": [{"title": "a"}]}, "documents.0.text"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"model": "paris"}, "model"),
        ({"documents": ["a", "word " * 99]}, "documents"),
    ],
)
def test_wrong_request_is_400_with_the_name_of_the_field(
    http: httpx.Client, fields: dict[str, object], param: str
) -> None:
    reply = http.post("/v1/rerank", json={"model": "scorer", "query": QUERY, "documents": DOCUMENTS} | fields)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)
