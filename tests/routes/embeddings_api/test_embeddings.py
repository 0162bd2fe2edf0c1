"""POST /v1/embeddings on a real socket, with a scripted encoder."""

from __future__ import annotations

import base64
import json
import math
from array import array
from collections.abc import Iterator
from typing import Any

import httpx
import openai as sdk
import pytest
from openai import OpenAI
from pydantic import SecretStr

from gateway.config.tables import ScriptedModel, ServerConfig
from gateway.embedding import Embedded, EmbeddingAnswer
from gateway.routes.embeddings_api.embed import joined
from gateway.routes.embeddings_api.embeddings import _pieces
from tests.support.server import Running, config_of, error_of, script_of, scripted, serving, wait_until

TEXTS = ["The capital of France is Paris.", "A cat sleeps."]


@pytest.fixture(scope="module")
def others() -> Iterator[Running]:
    """Another server: more encoders than one."""
    models = {
        "first": ScriptedModel(fallback="second", script=script_of(kind="encoder", load_error="The bundle is broken.")),
        "second": ScriptedModel(fallback="chat", script=script_of(kind="encoder")),
        "chat": scripted(),
        "wide": scripted(kind="encoder", dimensions=1000),
        "slow": scripted(kind="encoder", ttft_s=3600.0),
    }
    with serving(config_of(models, ServerConfig(timeout_s=3600.0))) as running:
        yield running


def vectors_of(reply: httpx.Response) -> list[list[float]]:
    assert reply.status_code == 200, reply.text
    data = reply.json()["data"]
    assert [(each["object"], each["index"]) for each in data] == [("embedding", index) for index in range(len(data))]
    return [each["embedding"] for each in data]


def test_sdk_gets_one_vector_for_each_text(openai: OpenAI) -> None:
    reply = openai.embeddings.create(model="vectors", input=TEXTS)
    assert (reply.object, reply.model) == ("list", "vectors")
    assert (reply.usage.prompt_tokens, reply.usage.total_tokens) == (11, 11)
    first, second = (each.embedding for each in reply.data)
    assert len(first) == len(second) == 8 and first != second
    assert openai.embeddings.create(model="vectors", input=TEXTS[1]).data[0].embedding == second


def test_langchain_gets_the_vectors_of_the_sdk(server: Running, openai: OpenAI) -> None:
    from langchain_openai import OpenAIEmbeddings  # slow to import

    expected = [each.embedding for each in openai.embeddings.create(model="vectors", input=TEXTS).data]
    embeddings = OpenAIEmbeddings(
        model="vectors", base_url=f"{server.url}/v1", api_key=SecretStr("x"), check_embedding_ctx_length=False
    )
    assert embeddings.embed_documents(TEXTS) == expected
    assert embeddings.embed_query(TEXTS[1]) == expected[1]


def test_base64_is_little_endian_float32_of_the_same_numbers(http: httpx.Client) -> None:
    numbers = vectors_of(http.post("/v1/embeddings", json={"model": "vectors", "input": TEXTS}))
    body = {"model": "vectors", "input": TEXTS, "encoding_format": "base64"}
    texts: Any = vectors_of(http.post("/v1/embeddings", json=body))
    assert [array("f", base64.b64decode(text)).tolist() for text in texts] == numbers


def test_token_ids_are_one_input_or_a_list_of_inputs(http: httpx.Client) -> None:
    one = vectors_of(http.post("/v1/embeddings", json={"model": "vectors", "input": [5, 6, 7]}))
    two = vectors_of(http.post("/v1/embeddings", json={"model": "vectors", "input": [[5, 6, 7], [8]]}))
    assert len(one) == 1 and len(two) == 2 and two[0] == one[0]


def test_dimensions_cut_the_vector_and_normalise_it_again(http: httpx.Client) -> None:
    [whole] = vectors_of(http.post("/v1/embeddings", json={"model": "vectors", "input": "x"}))
    [short] = vectors_of(http.post("/v1/embeddings", json={"model": "vectors", "input": "x", "dimensions": 3}))
    length = math.hypot(*whole[:3])
    assert short == pytest.approx([number / length for number in whole[:3]], rel=1e-6)
    refused = http.post("/v1/embeddings", json={"model": "vectors", "input": "x", "dimensions": 9})
    error = error_of(refused)
    assert (refused.status_code, error["param"]) == (400, "dimensions")
    assert "9" in error["message"] and "8" in error["message"]


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ("", "input"),
        ([], "input"),
        ([[]], "input.0"),
        (["a", ""], "input.1"),
        (["a", 1], "input"),
        ([1, "a"], "input"),
        ([[1], 2], "input"),
        ([[1], "a"], "input"),
        ([-1], "input.0"),
        ([1.5], "input.0"),
        (["a"] * 2049, "input"),
        (None, "input"),
        ({"text": "a"}, "input"),
    ],
)
def test_wrong_input_is_400_with_the_name_of_the_field(http: httpx.Client, value: object, param: str) -> None:
    reply = http.post("/v1/embeddings", json={"model": "vectors", "input": value})
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


def test_text_over_the_context_is_cut_only_where_that_is_configured_or_requested(http: httpx.Client) -> None:
    body = {"model": "vectors", "input": ["one two", "word " * 9]}
    refused = http.post("/v1/embeddings", json=body)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "context_length_exceeded")
    assert "input.1" in error_of(refused)["message"]
    cut = http.post("/v1/embeddings", json=body, headers={"x-gateway-truncation": "auto"})
    assert cut.json()["usage"]["prompt_tokens"] == 10 and cut.headers["x-gateway-truncated"] == "texts=1"
    assert "x-gateway-truncated" not in http.post("/v1/embeddings", json={**body, "input": "one two"}).headers


def test_chat_model_and_unknown_model_are_errors_that_name_the_encoders(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="use vectors") as caught:
        openai.embeddings.create(model="paris", input="x")
    assert caught.value.param == "model"
    with pytest.raises(sdk.NotFoundError):
        openai.embeddings.create(model="text-embedding-3-small", input="x")
    with pytest.raises(sdk.BadRequestError, match="use paris"):
        openai.chat.completions.create(model="vectors", messages=[{"role": "user", "content": "x"}])


def test_fallback_with_other_vectors_does_not_answer(others: Running) -> None:
    """Nor does a chat model. Vectors of another model would spoil a collection, and no client would see it."""
    with others.http() as http:
        reply = http.post("/v1/embeddings", json={"model": "first", "input": "x"})
        assert (reply.status_code, error_of(reply)["code"]) == (503, "model_not_ready")


def test_unknown_fields_and_purposes_are_reported(http: httpx.Client) -> None:
    body = {"model": "vectors", "input": "x", "dimension": 3, "prefix": "query: ", "input_type": "poem"}
    ignored = http.post("/v1/embeddings", json=body).headers["x-gateway-ignored"]
    assert ignored == "dimension (unknown; did you mean dimensions?), prefix (not supported), input_type (poem)"
    [query] = vectors_of(http.post("/v1/embeddings", json={"model": "vectors", "input": "x", "input_type": "query"}))
    [plain] = vectors_of(http.post("/v1/embeddings", json={"model": "vectors", "input": "x"}))
    assert query != plain


def test_piece_of_a_large_reply_is_limited() -> None:
    """200 texts of 1024 numbers: each step of the event loop writes 20,000 numbers or fewer."""
    embedded = Embedded(vectors=bytes(4 * 1024 * 200), dimensions=1024, tokens=(1,) * 200)
    answer = EmbeddingAnswer(model="m", embedded=embedded, prompt_tokens=200, device_s=0.0, total_s=0.0)
    parts = list(joined(_pieces(answer, as_text=False), 1024))
    assert max(part.count(b",") for part in parts) < 21_000 and len(parts) > 10
    assert len(json.loads(b"".join(parts))["data"]) == 200


def test_large_reply_is_sent_in_pieces(others: Running) -> None:
    with others.http() as http:
        body = {"model": "wide", "input": [f"text {index}" for index in range(50)]}
        reply = http.post("/v1/embeddings", json=body)
        assert reply.headers["content-type"] == "application/json" and "content-length" not in reply.headers
        vectors = vectors_of(reply)
        assert len(vectors) == 50 and {len(vector) for vector in vectors} == {1000}
        assert vectors[7] == vectors_of(http.post("/v1/embeddings", json={"model": "wide", "input": "text 7"}))[0]


def test_client_that_leaves_cancels(others: Running) -> None:
    states = others.app.state.router.status
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 31\r\n\r\n"
    with others.connect() as connection:
        connection.sendall(head + b'{"model": "slow", "input": "x"}')
        wait_until(lambda: any(lane.running for lane in states()), "the request does not run")
    wait_until(lambda: all(not lane.running for lane in states()), "the request of a client that left still runs")
