"""POST /tokenize, /detokenize and /apply-template, with the fields of llama.cpp and of vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.routes.openai_api.helpers import running_requests
from tests.support.server import Running

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello <|im_end|> there"}]
TEXTS = ["", "Hello world", "  naïve — 東京 👩‍👩‍👧\n\n", "<|im_start|>user\nhi<|im_end|>\n"]


@pytest.fixture(scope="module")
def http(local: Running) -> Iterator[httpx.Client]:
    with local.http() as client:
        yield client


def post(http: httpx.Client, path: str, **fields: Any) -> dict[str, Any]:
    response = http.post(path, json={"model": "smollm2", **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@pytest.mark.parametrize("field", ["content", "prompt"])
@pytest.mark.parametrize("text", TEXTS)
def test_detokenize_reverses_tokenize(http: httpx.Client, field: str, text: str) -> None:
    tokenized = post(http, "/tokenize", **{field: text})
    assert tokenized["count"] == len(tokenized["tokens"]) and tokenized["max_model_len"] == 2048 * 4
    back = post(http, "/detokenize", tokens=tokenized["tokens"])
    assert back == {"content": text, "prompt": text}


def test_special_tokens_are_parsed_unless_parse_special_is_false(http: httpx.Client) -> None:
    assert post(http, "/tokenize", content="<|im_end|>")["tokens"] == [2]
    spelled = post(http, "/tokenize", content="<|im_end|>", parse_special=False)["tokens"]
    assert len(spelled) > 3 and 2 not in spelled
    assert post(http, "/detokenize", tokens=spelled)["content"] == "<|im_end|>"


def test_pieces_are_text_or_bytes(http: httpx.Client) -> None:
    text = "Hello 👩 é"
    tokens = post(http, "/tokenize", content=text, with_pieces=True)["tokens"]
    assert [token["id"] for token in tokens] == post(http, "/tokenize", content=text)["tokens"]
    assert tokens[0]["piece"] == "Hello" and any(isinstance(token["piece"], list) for token in tokens)
    raw = [p.encode() if isinstance(p := token["piece"], str) else bytes(p) for token in tokens]
    assert b"".join(raw).decode() == text


def test_return_token_strs_gives_token_texts(http: httpx.Client) -> None:
    assert post(http, "/tokenize", prompt="Hello world", return_token_strs=True)["token_strs"] == ["Hello", " world"]
    assert "token_strs" not in post(http, "/tokenize", prompt="Hello world")


def test_tokenized_messages_equal_the_chat_prompt(http: httpx.Client, local: Running) -> None:
    tokenized = post(http, "/tokenize", messages=MESSAGES)
    with local.openai() as client:
        reply = client.chat.completions.create(model="smollm2", messages=MESSAGES, max_tokens=1)  # type: ignore[arg-type]
    assert reply.usage is not None and reply.usage.prompt_tokens == tokenized["count"]
    assert tokenized["tokens"].count(2) == 2  # the end of two messages; the user's text has none


def test_apply_template_gives_the_chat_prompt(http: httpx.Client) -> None:
    prompt = post(http, "/apply-template", messages=MESSAGES)["prompt"]
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello <|im_end|> there<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert post(http, "/detokenize", tokens=post(http, "/tokenize", messages=MESSAGES)["tokens"])["prompt"] == prompt


def test_completion_of_the_rendered_prompt_equals_the_chat(http: httpx.Client, local: Running) -> None:
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = post(http, "/apply-template", messages=messages)["prompt"]
    with local.openai() as client:
        text = client.completions.create(model="smollm2", prompt=prompt, max_tokens=8, temperature=0).choices[0].text
        chat = client.chat.completions.create(model="smollm2", messages=messages, max_tokens=8, temperature=0)
    assert text == chat.choices[0].message.content


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "b"}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages.0.content"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens"),
        ("/detokenize", {"tokens": [49152]}, "tokens"),
        ("/apply-template", {}, "messages"),
        ("/apply-template", {"messages": [{"role": "wizard", "content": ""}]}, "messages.0.role"),
    ],
)
def test_invalid_field_is_400_with_its_name(http: httpx.Client, path: str, body: dict[str, Any], param: str) -> None:
    response = http.post(path, json={"model": "smollm2", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/apply-template"])
def test_model_without_tokenizer_is_400_and_unknown_model_404(server: Running, path: str) -> None:
    body = {"content": "a", "tokens": [1], "messages": MESSAGES}
    one = {"/tokenize": "content", "/detokenize": "tokens", "/apply-template": "messages"}[path]
    with server.http() as http:
        scripted = http.post(path, json={"model": "paris", one: body[one]})
        unknown = http.post(path, json={"model": "gpt-9", one: body[one]})
    assert (scripted.status_code, scripted.json()["error"]["param"]) == (400, "model")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_tokenize_does_not_wait_for_a_generation(local: Running, http: httpx.Client) -> None:
    with (
        local.openai() as client,
        client.completions.create(
            model="smollm2", prompt="Once", max_tokens=8000, stream=True, extra_body={"ignore_eos": True}
        ) as stream,
    ):
        next(iter(stream))
        assert post(http, "/tokenize", content="Hello world")["count"] == 2
        assert running_requests(local, "smollm2") == 1
