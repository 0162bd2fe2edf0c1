"""The Responses API over a socket: the official client and raw bytes, with scripted and with local models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI

from gateway.config.tables import ServerConfig
from tests.routes.conftest import PARIS
from tests.routes.responses_api.helpers import (
    FRANCE,
    NAMESPACE,
    TOOL,
    events_of,
)
from tests.support.server import Running, config_of, scripted, serving

PATH = "/v1/responses"


@pytest.fixture(scope="module")
def real(local: Running) -> Iterator[OpenAI]:
    with local.openai(timeout=120) as client:
        yield client


def test_answer_is_right_streamed_and_whole(real: OpenAI) -> None:
    request: Any = {"model": "smollm2", "input": FRANCE, "temperature": 0}
    reply = real.responses.create(**request)
    assert "Paris" in reply.output_text
    assert (reply.status, reply.model, reply.error, reply.incomplete_details) == ("completed", "smollm2", None, None)
    with real.responses.stream(**request) as stream:
        joined = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert joined == final.output_text == reply.output_text
    assert final.usage is not None and reply.usage is not None
    assert final.usage.output_tokens == reply.usage.output_tokens
    assert final.usage.input_tokens_details.cached_tokens > 0


def test_previous_response_continues_the_conversation(real: OpenAI) -> None:
    request: Any = {"model": "smollm2", "temperature": 0, "max_output_tokens": 8}
    first = real.responses.create(input=FRANCE, instructions="Be brief.", **request)
    second = real.responses.create(input="And of Spain?", previous_response_id=first.id, **request)
    whole: Any = [
        {"role": "user", "content": FRANCE},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And of Spain?"},
    ]
    by_hand = real.responses.create(input=whole, **request)
    assert second.usage is not None and by_hand.usage is not None
    assert second.usage.input_tokens == by_hand.usage.input_tokens  # the instructions are not carried over
    assert (second.output_text, second.previous_response_id) == (by_hand.output_text, first.id)


def test_answer_matches_its_schema(real: OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    text: Any = {
        "format": {"type": "json_schema", "name": "number", "schema": {**schema, "additionalProperties": False}}
    }
    reply = real.responses.create(model="smollm2", input="A number, please.", text=text, max_output_tokens=40)
    assert reply.status == "incomplete" or isinstance(json.loads(reply.output_text)["n"], int)


def test_required_call_is_an_item_and_its_result_is_read(real: OpenAI) -> None:
    city = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    tool: Any = TOOL | {"parameters": {**city, "additionalProperties": False}}
    request: Any = {"model": "smollm2", "tools": [tool], "max_output_tokens": 100}
    choice: Any = {"type": "function", "name": "weather"}
    with real.responses.stream(input="The weather in Paris?", tool_choice=choice, **request) as stream:
        names = [event.type for event in stream]
        first = stream.get_final_response()
    assert "response.function_call_arguments.delta" in names and first.status == "completed"
    call = first.output[-1]
    assert call.type == "function_call" and call.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}]
    second = real.responses.create(input=result, previous_response_id=first.id, tool_choice="none", **request)
    assert second.output_text


def test_include_adds_logprobs(real: OpenAI) -> None:
    include: Any = ["message.output_text.logprobs"]
    reply = real.responses.create(model="smollm2", input=FRANCE, include=include, top_logprobs=2, max_output_tokens=4)
    part: Any = reply.output[0].content[0]  # type: ignore[union-attr,index]
    assert part.logprobs and len(part.logprobs) == 4
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


def test_reply_has_every_field_a_client_reads(http: httpx.Client) -> None:
    reply = http.post(PATH, json={"model": "paris", "input": FRANCE, "metadata": {"a": "b"}}).json()
    assert (reply["object"], reply["status"], reply["model"]) == ("response", "completed", "paris")
    assert reply["id"].startswith("resp_") and isinstance(reply["created_at"], int)
    [message] = reply["output"]
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": PARIS, "annotations": [], "logprobs": []}],
    }
    assert reply["usage"] == {
        "input_tokens": 6,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 13,
    }
    echoed = {key: reply[key] for key in ("tools", "tool_choice", "parallel_tool_calls", "store", "text", "metadata")}
    assert echoed == {
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "store": True,
        "text": {"format": {"type": "text"}},
        "metadata": {"a": "b"},
    }
    assert reply["error"] is reply["incomplete_details"] is reply["previous_response_id"] is None


def test_stream_events_are_in_order_named_and_numbered(http: httpx.Client) -> None:
    response = http.post(PATH, json={"model": "paris", "input": FRANCE, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert all(name == payload["type"] for name, payload in events)
    assert [payload["sequence_number"] for _, payload in events] == list(range(len(events)))
    names = [name for name, _ in events]
    deltas = names.count("response.output_text.delta")
    assert deltas > 1 and names == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        *["response.output_text.delta"] * deltas, "response.output_text.done", "response.content_part.done",
        "response.output_item.done", "response.completed",
    ]  # fmt: skip
    by_name = dict(events)
    created, completed = by_name["response.created"]["response"], by_name["response.completed"]["response"]
    assert created["id"] == by_name["response.in_progress"]["response"]["id"] == completed["id"]
    assert (created["status"], created["output"], created["usage"]) == ("in_progress", [], None)
    added = by_name["response.output_item.added"]["item"]
    assert (added["status"], added["content"]) == ("in_progress", [])
    assert {payload["item_id"] for _, payload in events if "item_id" in payload} == {added["id"]}
    assert by_name["response.content_part.added"]["part"]["text"] == ""
    assert "".join(payload["delta"] for _, payload in events if "delta" in payload) == PARIS
    assert (
        by_name["response.output_text.done"]["text"] == by_name["response.content_part.done"]["part"]["text"] == PARIS
    )
    assert completed["output"] == [by_name["response.output_item.done"]["item"]]
    assert completed["output"][0]["id"] == added["id"] and completed["usage"]["total_tokens"] == 13


def test_token_limit_gives_incomplete_status(openai: OpenAI) -> None:
    reply = openai.responses.create(model="paris", input=FRANCE, max_output_tokens=3)
    assert reply.status == reply.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert reply.incomplete_details is not None and reply.incomplete_details.reason == "max_output_tokens"
    *_, last = openai.responses.create(model="paris", input=FRANCE, max_output_tokens=3, stream=True)
    assert last.type == "response.incomplete" and last.response.status == "incomplete"


def test_default_limit_is_64_tokens(openai: OpenAI) -> None:
    reply = openai.responses.create(model="endless", input=FRANCE)
    assert reply.usage is not None and reply.usage.output_tokens == 64
    assert reply.max_output_tokens is None


def test_failure_in_a_stream_is_a_last_failed_event(openai: OpenAI) -> None:
    *_, before, last = openai.responses.create(model="breaks", input=FRANCE, stream=True)
    assert before.type == "response.output_text.delta"
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error is not None and last.response.error.message == "The device fell over."
    assert str(last.response.error.code) == "engine_failed" and last.sequence_number == before.sequence_number + 1
    with pytest.raises(NotFoundError):
        openai.responses.retrieve(last.response.id)
    with pytest.raises(APIStatusError, match="fell over"):
        openai.responses.create(model="breaks", input=FRANCE)


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Look"}, IMAGE]}]},
            "input.0.content.1",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input"),
        ({"input": [{"type": "function_call_output", "output": "Sunny."}]}, "input.0.call_id"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [{"type": "namespace", "tools": [TOOL]}]}, "tools.0.name"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "array"}}]}, "tools.0.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
    ],
)
def test_invalid_field_is_400_with_its_name(openai: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.post("/responses", body={"model": "paris", "input": FRANCE, "stream": True, **fields}, cast_to=object)
    assert refused.value.param == param


def test_request_of_a_coding_agent_is_accepted(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"command": {"type": "array", "items": {"type": "string"}}}}
    body = {
        "model": "paris",
        "instructions": "You are a coding agent. " * 1500,
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": FRANCE}]},
        ],
        "tools": [
            {"type": "function", "name": "shell", "description": "d", "strict": False, "parameters": schema},
            NAMESPACE,
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199-abc",
        "text": {"verbosity": "low"},
        "client_metadata": {"x": "y"},
    }
    model = scripted(PARIS, context_length=100_000)
    with serving(config_of({"paris": model})) as running, running.http() as client:
        events = events_of(client.post(PATH, json=body).text)
        assert events[-1][0] == "response.completed"
        id = events[-1][1]["response"]["id"]
        assert client.get(f"{PATH}/{id}").status_code == 404


def test_response_is_stored_until_deleted(openai: OpenAI) -> None:
    reply = openai.responses.create(model="paris", input=FRANCE)
    assert openai.responses.retrieve(reply.id).to_dict() == reply.to_dict()
    openai.responses.delete(reply.id)
    for method in (openai.responses.retrieve, openai.responses.delete):
        with pytest.raises(NotFoundError, match=reply.id):
            method(reply.id)
    with pytest.raises(BadRequestError) as refused:
        openai.responses.create(model="paris", input=FRANCE, previous_response_id=reply.id)
    assert refused.value.code == "previous_response_not_found"


def test_store_false_is_not_stored(openai: OpenAI) -> None:
    reply = openai.responses.create(model="paris", input=FRANCE, store=False)
    with pytest.raises(NotFoundError):
        openai.responses.retrieve(reply.id)


def test_streamed_response_is_stored_before_its_last_event(openai: OpenAI) -> None:
    for event in openai.responses.create(model="paris", input=FRANCE, stream=True):
        if event.type == "response.completed":
            assert openai.responses.retrieve(event.response.id).output_text == PARIS


def test_item_reference_equals_the_item(openai: OpenAI) -> None:
    first = openai.responses.create(model="paris", input=FRANCE)
    assert first.output[0].id is not None
    user: Any = {"role": "user", "content": "Really?"}
    items: Any = [{"role": "user", "content": FRANCE}, {"type": "item_reference", "id": first.output[0].id}, user]
    by_id = openai.responses.create(model="paris", input=items)
    items[1] = {"role": "assistant", "content": PARIS}
    by_hand = openai.responses.create(model="paris", input=items)
    assert by_id.usage is not None and by_hand.usage is not None
    assert by_id.usage.input_tokens == by_hand.usage.input_tokens
    items[1] = {"type": "item_reference", "id": "msg_0"}
    with pytest.raises(NotFoundError) as refused:
        openai.responses.create(model="paris", input=items)
    assert refused.value.param == "input.1.id"


def test_responses_are_private_to_their_api_key() -> None:
    server = ServerConfig(api_keys={"ann": "key-ann", "bob": "key-bob"})
    with (
        serving(config_of({"paris": scripted(PARIS)}, server), loaded=False) as running,
        running.openai(api_key="key-ann", max_retries=5) as ann,
        running.openai(api_key="key-bob") as bob,
    ):
        reply = ann.responses.create(model="paris", input=FRANCE)
        assert ann.responses.retrieve(reply.id).id == reply.id
        with pytest.raises(NotFoundError):
            bob.responses.retrieve(reply.id)
        with pytest.raises(NotFoundError):
            bob.responses.delete(reply.id)
        with pytest.raises(BadRequestError):
            bob.responses.create(model="paris", input=FRANCE, previous_response_id=reply.id)
        with pytest.raises(NotFoundError):
            item: Any = {"type": "item_reference", "id": reply.output[0].id}
            bob.responses.create(model="paris", input=[item])
