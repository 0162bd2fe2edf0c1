"""Structured output (constrained decoding) of SmolLM2, through the official client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from openai import BadRequestError, LengthFinishReasonError, OpenAI
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

from tests.support.server import Running
from tests.support.structured import SCHEMAS, WORD, closed, faults, some

ASK: Any = [{"role": "user", "content": "Describe a person as JSON: name, age and mood."}]
PERSON = closed(name=WORD, age={"type": "integer", "minimum": 0, "maximum": 150}, mood={"enum": ["good", "bad"]})


@pytest.fixture(scope="module")
def openai(local: Running) -> Iterator[OpenAI]:
    with local.openai(timeout=120) as client:
        yield client


def schema_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def complete(openai: OpenAI, **fields: Any) -> ChatCompletion:
    fields = {"model": "smollm2", "messages": ASK, "temperature": 1.5, "seed": 1, "max_tokens": 120} | fields
    return openai.chat.completions.create(**fields)


def text(completion: ChatCompletion) -> str:
    return completion.choices[0].message.content or ""


def streamed(openai: OpenAI, **fields: Any) -> tuple[str, str | None, int]:
    """The text, the finish reason and the number of pieces."""
    pieces: list[str] = []
    reason = None
    for chunk in complete(openai, stream=True, **fields):  # type: ignore[misc]
        pieces += [chunk.choices[0].delta.content or ""]  # type: ignore[attr-defined]
        reason = chunk.choices[0].finish_reason or reason  # type: ignore[attr-defined]
    return "".join(pieces), reason, len(pieces)


@pytest.mark.parametrize(
    ("model", "name"),
    [("tiny", name) for name in SCHEMAS] + [("smollm2", name) for name in ("order", "shape", "report")],
)
def test_answer_matches_its_schema_at_high_temperature(
    openai: OpenAI, tiny_openai: OpenAI, model: str, name: str
) -> None:
    """Two choices for each schema; scripts/structured_run.py runs a thousand of SmolLM2."""
    client, tokens = (openai, 64) if model == "smollm2" else (tiny_openai, 256)
    messages: Any = [{"role": "user", "content": f"Write a {name} as JSON."}]
    fields = {"messages": messages, "n": 2, "response_format": schema_format(SCHEMAS[name])}
    found = complete(client, model=model, max_tokens=tokens, **fields)
    assert len(found.choices) == 2
    for choice in found.choices:
        if choice.finish_reason != "length":
            assert choice.finish_reason == "stop"
            assert faults(SCHEMAS[name], choice.message.content or "") == []


def test_streamed_answer_equals_whole_reply(openai: OpenAI) -> None:
    whole = complete(openai, response_format=schema_format(PERSON))
    found, reason, pieces = streamed(openai, response_format=schema_format(PERSON))
    assert (found, reason) == (text(whole), "stop") and pieces > 3
    assert faults(PERSON, found) == []


def test_sdk_parse_returns_a_pydantic_model(openai: OpenAI) -> None:
    class Pet(BaseModel):
        name: str
        kind: Literal["cat", "dog"]

    class Owner(BaseModel):
        age: int
        pets: list[Pet] | None

    found = openai.chat.completions.parse(
        model="smollm2", messages=ASK, response_format=Owner, temperature=0, max_tokens=200
    )
    owner = found.choices[0].message.parsed
    assert isinstance(owner, Owner) and isinstance(owner.age, int)


def test_cut_answer_has_length_reason(openai: OpenAI) -> None:
    found = complete(openai, response_format=schema_format(PERSON), max_tokens=4)
    assert found.choices[0].finish_reason == "length"
    assert found.usage is not None and found.usage.completion_tokens == 4

    class Name(BaseModel):
        name: str

    with pytest.raises(LengthFinishReasonError):
        openai.chat.completions.parse(model="smollm2", messages=ASK, response_format=Name, max_tokens=2)


def test_json_object_format_gives_an_object(openai: OpenAI) -> None:
    found = complete(openai, response_format={"type": "json_object"}, temperature=0, max_tokens=80)
    assert text(found).startswith("{") and not re.search(r"\s\s", text(found))
    if found.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text(found)), dict)


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}-[a-z]{2}"}, "[0-9]{3}-[a-z]{2}"),
        ({"structured_outputs": {"regex": "(yes|no), (yes|no)"}}, "(yes|no), (yes|no)"),
        ({"guided_choice": ["red", 'gr"een']}, 'red|gr"een'),
        ({"structured_outputs": {"grammar": 'start: "a" "b"{2,3} "c"'}}, "ab{2,3}c"),
        ({"grammar": 'root ::= "x" [0-9]{1,3} "y"'}, "x[0-9]{1,3}y"),
        ({"guided_json": json.dumps({"enum": [1, None]})}, "1|null"),
        ({"json_schema": {"const": {"a": [1]}}}, re.escape('{"a": [1]}')),
    ],
    ids=str,
)
def test_vllm_and_llama_cpp_constraints_are_obeyed(openai: OpenAI, fields: dict[str, Any], pattern: str) -> None:
    assert re.fullmatch(pattern, text(complete(openai, extra_body=fields)))


def test_text_completion_obeys_a_regex(openai: OpenAI) -> None:
    found = openai.completions.create(
        model="smollm2", prompt="The code is", max_tokens=20, extra_body={"guided_regex": "[0-9]{4}"}
    )
    assert re.fullmatch("[0-9]{4}", found.choices[0].text) and found.choices[0].finish_reason == "stop"


def test_stop_string_ends_structured_text(openai: OpenAI) -> None:
    found = complete(openai, response_format=schema_format(PERSON), stop=['"age'])
    assert re.fullmatch(r'\{"name": "[a-z]{2,12}", ', text(found)) and found.choices[0].finish_reason == "stop"


def test_logprobs_include_tokens_forced_by_the_grammar(openai: OpenAI) -> None:
    found = complete(openai, response_format=schema_format(PERSON), logprobs=True, top_logprobs=3)
    logprobs = found.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == text(found)
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in logprobs.content)
    assert min(token.logprob for token in logprobs.content) < -3  # a token that only the grammar forced


def test_prediction_does_not_change_the_answer(openai: OpenAI) -> None:
    fields: dict[str, Any] = {"response_format": schema_format(PERSON), "temperature": 0}
    plain = text(complete(openai, **fields))
    found = complete(openai, prediction={"type": "content", "content": plain}, **fields)
    assert text(found) == plain


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "what"),
    [
        (
            {"response_format": schema_format(closed(a=some({"type": "hiccup"}, 0, 1)))},
            "response_format.json_schema.schema",
            "at '#/properties/a/items': Invalid type: hiccup",
        ),
        (
            {"response_format": schema_format({"$ref": "#/$defs/no"})},
            "response_format.json_schema.schema",
            "there is nothing at '#/$defs/no'",
        ),
        (
            {"response_format": schema_format({"items": {"pattern": "("}})},
            "response_format.json_schema.schema",
            "at '#/items': the regular expression is not supported: unclosed group",
        ),
        ({"extra_body": {"guided_regex": "(?<=a)b"}}, "guided_regex", "look-around"),
        ({"extra_body": {"grammar": "start: nowhere"}}, "grammar", 'unknown name: "nowhere"'),
        ({"extra_body": {"structured_outputs": {"json": {"not": {}}}}}, "structured_outputs.json", '"not"'),
    ],
    ids=str,
)
def test_unsupported_constraint_is_400_with_the_path(
    openai: OpenAI, fields: dict[str, Any], param: str, what: str, stream: bool
) -> None:
    with pytest.raises(BadRequestError) as caught:
        complete(openai, stream=stream, **fields)
    assert caught.value.param == param and what in caught.value.message


SAFE = 2**53 - 1
ZOD = {  # as zod 4 writes `z.object({n: z.int(), m: z.record(z.string(), z.int())})`
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": -SAFE, "maximum": SAFE},
        "m": {
            "type": "object",
            "propertyNames": {"type": "string"},
            "additionalProperties": {"type": "integer", "minimum": -SAFE, "maximum": SAFE},
        },
    },
    "required": ["n", "m"],
    "additionalProperties": False,
}
LOOSE = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}}


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"response_format": schema_format(ZOD)}),
        (
            "/v1/chat/completions",
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": ZOD, "strict": True}}],
                "tool_choice": "required",
            },
        ),
        (
            "/v1/chat/completions",
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": LOOSE}}],
                "tool_choice": "required",
            },
        ),
        ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "n", "schema": ZOD, "strict": True}}}),
        ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": ZOD}}}),
        ("/v1/messages", {"tools": [{"name": "f", "input_schema": LOOSE}], "tool_choice": {"type": "any"}}),
        ("/api/chat", {"format": ZOD, "stream": False}),
    ],
)
def test_schema_of_a_real_client_is_accepted_by_each_api(local: Running, path: str, fields: dict[str, Any]) -> None:
    prompt: dict[str, Any] = {"input": "Hi"} if path == "/v1/responses" else {"messages": ASK}
    limit = {"/v1/responses": "max_output_tokens", "/api/chat": "options"}.get(path, "max_tokens")
    body = {"model": "smollm2", **prompt, limit: {"num_predict": 2} if limit == "options" else 2, **fields}
    with local.http() as http:
        answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text


def test_error_of_a_strict_tool_names_it(local: Running) -> None:
    tool = {"type": "function", "function": {"name": "get_it", "parameters": LOOSE, "strict": True}}
    with local.http() as http:
        refused = http.post("/v1/chat/completions", json={"model": "tiny", "messages": ASK, "tools": [tool]})
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message.startswith("'tools' cannot be used: in the schema of the tool 'get_it', at '#/properties/a'")
