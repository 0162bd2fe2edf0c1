"""Ollama's embeddings, with its official client and a scripted encoder."""

from __future__ import annotations

import httpx
import pytest
from ollama import Client, ResponseError

TEXTS = ["The capital of France is Paris.", "A cat sleeps."]


def test_client_gets_vectors_counts_and_durations(client: Client, http: httpx.Client) -> None:
    reply = client.embed("vectors:latest", TEXTS)
    openai = http.post("/v1/embeddings", json={"model": "vectors", "input": TEXTS}).json()
    assert reply.model == "vectors"
    assert [list(each) for each in reply.embeddings] == [each["embedding"] for each in openai["data"]]
    assert reply.prompt_eval_count == openai["usage"]["prompt_tokens"]
    assert (reply.total_duration or 0) > 0 and reply.load_duration == 0
    assert len(client.embed("vectors", TEXTS[0], dimensions=3).embeddings[0]) == 3
    assert list(client.embeddings("vectors", TEXTS[0]).embedding) == list(reply.embeddings[0])


def test_long_text_is_cut_unless_the_client_refuses_that(client: Client) -> None:
    assert client.embed("vectors", "word " * 9).prompt_eval_count == 8
    with pytest.raises(ResponseError, match="9 tokens"):
        client.embed("vectors", "word " * 9, truncate=False)


def test_request_without_a_text_gets_no_vector(client: Client) -> None:
    assert client.embed("vectors", "").embeddings == client.embed("vectors", []).embeddings == []
    assert client.embeddings("vectors", "").embedding == []
    with pytest.raises(ResponseError) as caught:
        client.embed("unknown", "")
    assert caught.value.status_code == 404


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings"])
def test_chat_model_is_an_error_in_ollamas_form(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json={"model": "paris", "input": "x", "prompt": "x"})
    assert answer.status_code == 400 and "use vectors" in answer.json()["error"]
