"""POST /v1/embeddings."""

from __future__ import annotations

import httpx
import openai as sdk
import pytest
from openai import OpenAI


def test_embeddings_are_400_for_every_model(openai: OpenAI) -> None:
    with pytest.raises(sdk.BadRequestError, match="not an embedding model") as caught:
        openai.embeddings.create(model="paris", input="x")
    assert caught.value.param == "model"
    with pytest.raises(sdk.NotFoundError):
        openai.embeddings.create(model="text-embedding-3-small", input="x")


@pytest.mark.parametrize("path", ["/api/embed", "/api/embeddings"])
def test_ollamas_embeddings_are_400_in_its_form(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json={"model": "paris", "input": "x"})
    assert answer.status_code == 400 and "not an embedding model" in answer.json()["error"]
