"""The decoder of chat requests: accepted and refused bodies, and the field that an error names."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.errors import InvalidRequest
from gateway.routes.openai_api.wire import ChatRequest
from gateway.server.body import parse

decoder = msgspec.json.Decoder(ChatRequest)
HELLO = [{"role": "user", "content": "Hello"}]
OPTIONAL = [field.name for field in msgspec.structs.fields(ChatRequest) if field.name != "messages"]


def decode(**fields: Any) -> ChatRequest:
    return parse(msgspec.json.encode({"model": "m", "messages": HELLO, **fields}), decoder)


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode(**fields)
    return caught.value


def test_only_messages_is_required() -> None:
    request = parse(msgspec.json.encode({"messages": HELLO}), decoder)
    assert request.messages[0].content == "Hello"


@pytest.mark.parametrize("name", OPTIONAL)
def test_null_equals_absent(name: str) -> None:
    assert decode(**{name: None}) == decode(**({"model": None} if name == "model" else {}))


def test_unknown_fields_are_ignored() -> None:
    message = {"role": "user", "content": "Hello", "shoe_size": 44}
    assert decode(messages=[message], unheard_of={"a": 1}, user="u", store=True, verbosity="low") == decode()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"presence_penalty": -2.5}, "presence_penalty"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop": "a" * 4097}, "stop"),
        ({"stop": [1]}, "stop.0"),
        ({"seed": 2**63}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": "64"}, "max_tokens"),
        ({"max_completion_tokens": -2}, "max_completion_tokens"),
        ({"logit_bias": {"5": 100.5}}, "logit_bias"),
        ({"logit_bias": {"cat": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [*HELLO, {"role": "wizard", "content": "x"}]}, "messages.1.role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "has space"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f" * 129}}]}, "tools.0.function.name"),
        ({"max_tokens": 8.5}, "max_tokens"),
        ({"max_tokens": 1e30}, "max_tokens"),
        ({"tools": [{"type": "function", "function": {"name": "f\n"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 3}}]}, "tools.0.function.parameters"),
        ({"tool_choice": {}}, "tool_choice.type"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
        ({"prediction": {"type": "prophecy", "content": "x"}}, "prediction.type"),
    ],
)
def test_wrong_type_or_range_is_refused_with_field_name(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_limits_of_ranges_are_accepted() -> None:
    decode(temperature=0, top_p=0, presence_penalty=-2, frequency_penalty=2, n=128, seed=-(2**63), min_p=1)
    decode(temperature=2, top_p=1, n=1, seed=2**63 - 1, stop=["a", "b", "c", "d"], logit_bias={"0": -100, "7": 100})
    decode(top_logprobs=20, logprobs=True, top_k=-1)


def test_missing_messages_has_openai_message() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(b'{"model": "m"}', decoder)
    assert (caught.value.message, caught.value.param) == ("Missing required parameter: 'messages'.", "messages")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [{"role": "user", "content": "x"}]} trailing',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"a": ' + b"9" * 5000 + b"}}",
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"anything": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
)
def test_malformed_json_is_invalid_request(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(body, decoder)


def test_unusual_characters_are_kept() -> None:
    odd = "\u2028 \ufeff \x00 e\u0301 \U0001f468\u200d\U0001f469\u200d\U0001f467 \x1b[0m"
    assert decode(messages=[{"role": "user", "content": odd}]).messages[0].content == odd


def test_number_that_is_an_integer_may_have_a_point() -> None:
    text = 'costs 5.0, [1.0] "2.0" \\'
    body = msgspec.json.encode({"messages": [{"role": "user", "content": text}], "max_tokens": 7, "n": 2, "seed": -3})
    body = body.replace(b":7", b":7.0").replace(b":2", b": 2.00").replace(b":-3", b":-3.0")
    request = parse(body, decoder)
    assert (request.max_tokens, request.n, msgspec.structs.asdict(request)["seed"]) == (7, 2, -3)
    assert request.messages[0].content == text
