"""The Responses API: the official client and raw bytes against scripted models, then against the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI

from gateway.config import Defaults, ServerConfig
from gateway.errors import GatewayError, InvalidRequest, NotFound
from gateway.generation import (
    Chat,
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    Message,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from gateway.routes.collect import Collected, CollectedChoice, collect
from gateway.routes.responses_api.parse import response_generation
from gateway.routes.responses_api.parse_items import located_items
from gateway.routes.responses_api.render import ResponsesRendering
from gateway.routes.responses_api.store import ResponseStore
from gateway.routes.responses_api.wire import InputItem, ResponsesRequest
from gateway.routes.responses_api.wire_response import Response
from gateway.server.body import parse
from tests.routes.conftest import PARIS
from tests.routes.openai_api.test_parse_completions import ANYTHING
from tests.support.server import Running, config_of, scripted, serving

FRANCE = "What is the capital of France?"
TOOL: Any = {"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object"}}
PATH = "/v1/responses"

_decoder = msgspec.json.Decoder(ResponsesRequest)


@pytest.fixture(scope="module")
def real(local: Running) -> Iterator[OpenAI]:
    with local.openai(timeout=120) as client:
        yield client


def translated(store: ResponseStore | None = None, **fields: Any) -> Generation:
    request = parse(msgspec.json.encode({"model": "m", "input": FRANCE, **fields}), _decoder)
    placed = located_items(request, store or ResponseStore(), "me")
    return response_generation(request, placed, Defaults(), id="resp_1")


def chat_of(**fields: Any) -> Chat:
    prompt = translated(**fields).prompt
    assert isinstance(prompt, Chat)
    return prompt


def turns(*items: Any, **fields: Any) -> tuple[Message, ...]:
    return chat_of(input=items, **fields).messages


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    frames = [frame.split("\n") for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


def rendering(keep: Any = lambda response: None, **fields: Any) -> ResponsesRendering:
    request = parse(msgspec.json.encode({"model": "m", "input": FRANCE, **fields}), _decoder)
    return ResponsesRendering(request, translated(**fields), keep)


def told(events: list[Event], **fields: Any) -> list[dict[str, Any]]:
    made = rendering(**fields)
    text = b"".join(piece for event in events for piece in made.pieces("m", event)).decode()
    return [payload for _, payload in events_of(text)]


# ---- the real model


def test_the_real_model_says_paris_streamed_and_not(real: OpenAI) -> None:
    asked: Any = {"model": "smollm2", "input": FRANCE, "temperature": 0}
    reply = real.responses.create(**asked)
    assert "Paris" in reply.output_text
    assert (reply.status, reply.model, reply.error, reply.incomplete_details) == ("completed", "smollm2", None, None)
    with real.responses.stream(**asked) as stream:
        joined = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert joined == final.output_text == reply.output_text
    assert final.usage is not None and reply.usage is not None
    assert final.usage.output_tokens == reply.usage.output_tokens
    assert final.usage.input_tokens_details.cached_tokens > 0


def test_a_conversation_goes_on_from_the_previous_response(real: OpenAI) -> None:
    asked: Any = {"model": "smollm2", "temperature": 0, "max_output_tokens": 8}
    first = real.responses.create(input=FRANCE, instructions="Be brief.", **asked)
    second = real.responses.create(input="And of Spain?", previous_response_id=first.id, **asked)
    whole: Any = [
        {"role": "user", "content": FRANCE},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And of Spain?"},
    ]
    by_hand = real.responses.create(input=whole, **asked)
    assert second.usage is not None and by_hand.usage is not None
    assert second.usage.input_tokens == by_hand.usage.input_tokens  # the instructions are not carried over
    assert (second.output_text, second.previous_response_id) == (by_hand.output_text, first.id)


def test_an_answer_keeps_to_its_schema(real: OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    text: Any = {
        "format": {"type": "json_schema", "name": "number", "schema": {**schema, "additionalProperties": False}}
    }
    reply = real.responses.create(model="smollm2", input="A number, please.", text=text, max_output_tokens=40)
    assert reply.status == "incomplete" or isinstance(json.loads(reply.output_text)["n"], int)


def test_a_demanded_call_comes_as_an_item_and_its_result_goes_back(real: OpenAI) -> None:
    city = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    tool: Any = TOOL | {"parameters": {**city, "additionalProperties": False}}
    asked: Any = {"model": "smollm2", "tools": [tool], "max_output_tokens": 100}
    choice: Any = {"type": "function", "name": "weather"}
    with real.responses.stream(input="The weather in Paris?", tool_choice=choice, **asked) as stream:
        names = [event.type for event in stream]
        first = stream.get_final_response()
    assert "response.function_call_arguments.delta" in names and first.status == "completed"
    call = first.output[-1]
    assert call.type == "function_call" and call.name == "weather"
    assert json.loads(call.arguments)["city"] in ("Paris", "Rome")
    result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}]
    second = real.responses.create(input=result, previous_response_id=first.id, tool_choice="none", **asked)
    assert second.output_text


def test_log_probabilities_when_asked_for(real: OpenAI) -> None:
    include: Any = ["message.output_text.logprobs"]
    reply = real.responses.create(model="smollm2", input=FRANCE, include=include, top_logprobs=2, max_output_tokens=4)
    part: Any = reply.output[0].content[0]  # type: ignore[union-attr,index]
    assert part.logprobs and len(part.logprobs) == 4
    assert all(len(entry.top_logprobs) == 2 for entry in part.logprobs)


# ---- replies


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


def test_stream_has_the_events_in_order_named_numbered_and_with_the_same_ids(http: httpx.Client) -> None:
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


def test_the_limit_ends_incomplete(openai: OpenAI) -> None:
    reply = openai.responses.create(model="paris", input=FRANCE, max_output_tokens=3)
    assert reply.status == reply.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert reply.incomplete_details is not None and reply.incomplete_details.reason == "max_output_tokens"
    *_, last = openai.responses.create(model="paris", input=FRANCE, max_output_tokens=3, stream=True)
    assert last.type == "response.incomplete" and last.response.status == "incomplete"


def test_without_a_limit_the_configured_one(openai: OpenAI) -> None:
    reply = openai.responses.create(model="endless", input=FRANCE)
    assert reply.usage is not None and reply.usage.output_tokens == 64
    assert reply.max_output_tokens is None


def test_failure_midstream_is_a_failed_response_and_no_more(openai: OpenAI) -> None:
    *_, before, last = openai.responses.create(model="breaks", input=FRANCE, stream=True)
    assert before.type == "response.output_text.delta"
    assert last.type == "response.failed" and last.response.status == "failed"
    assert last.response.error is not None and last.response.error.message == "The device fell over."
    assert str(last.response.error.code) == "engine_failed" and last.sequence_number == before.sequence_number + 1
    with pytest.raises(NotFoundError):
        openai.responses.retrieve(last.response.id)
    with pytest.raises(APIStatusError, match="fell over"):
        openai.responses.create(model="breaks", input=FRANCE)


def test_failure_before_anything_was_said_still_begins() -> None:
    events = events_of(rendering().failed(GatewayError("No.")).decode())
    assert [name for name, _ in events] == ["response.created", "response.in_progress", "response.failed"]


THINKS_SAYS_CALLS: list[Event] = [
    Started(prompt_tokens=9, cached_tokens=4),
    ReasoningDelta("Hm"), ReasoningDelta("."), TextDelta("Let me "), TextDelta("see."),
    ToolCallDelta(index=0, id="call_a", name="weather"), ToolCallDelta(index=0, arguments='{"at":'),
    ToolCallDelta(index=0, arguments='"Paris"}'), ToolCallDelta(index=1, id="call_b", name="clock", arguments="{}"),
    ChoiceFinished("tool_calls"),
    Finished(usage=Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=20, reasoning_tokens=2)),
]  # fmt: skip


def test_thoughts_text_and_calls_are_items_of_their_own() -> None:
    payloads = told(THINKS_SAYS_CALLS)
    output = payloads[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}] and output[0]["summary"] == []
    assert [(item["call_id"], item["name"], item["arguments"], item["status"]) for item in output[2:]] == [
        ("call_a", "weather", '{"at":"Paris"}', "completed"), ("call_b", "clock", "{}", "completed"),
    ]  # fmt: skip
    assert len({item["id"] for item in output}) == 4
    call = [payload["type"].removeprefix("response.") for payload in payloads if payload.get("output_index") == 2]
    arguments = "function_call_arguments"
    assert call == ["output_item.added", *[f"{arguments}.delta"] * 2, f"{arguments}.done", "output_item.done"]
    thought = [payload["type"].removeprefix("response.") for payload in payloads if payload.get("output_index") == 0]
    assert thought == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
    ]  # fmt: skip
    for payload in payloads:
        if "item_id" in payload:
            assert payload["item_id"] == output[payload["output_index"]]["id"]


async def test_a_whole_reply_is_what_the_stream_builds() -> None:
    async def events() -> Any:
        for event in THINKS_SAYS_CALLS:
            yield event

    collected: Collected = await collect(events(), 1)
    kept: list[Response] = []
    whole = json.loads(msgspec.json.encode(rendering(kept.append).whole("m", collected)))
    streamed = told(THINKS_SAYS_CALLS)[-1]["response"]
    assert whole | {"created_at": 0} == streamed | {"created_at": 0} and len(kept) == 1


# ---- what is asked


def test_items_become_turns() -> None:
    messages = turns(
        {
            "role": "developer",
            "content": [{"type": "input_text", "text": "Be"}, {"type": "input_text", "text": "brief"}],
        },
        {"type": "message", "role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": '{"at": 1}'},
        {"type": "function_call", "call_id": "b", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "Sunny."},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "Noon."}]},
        {"type": "reasoning", "id": "rs_2", "summary": []},
        {"role": "assistant", "content": "Sunny."},
        {"role": "assistant", "content": "And noon."},
        instructions="You are a clock.",
    )
    calls = (ToolCall("a", "weather", '{"at": 1}'), ToolCall("b", "clock", "{}"))
    assert messages == (
        Message(role="system", content="You are a clock."),
        Message(role="system", content="Be\nbrief"),
        Message(role="user", content="Weather?"),
        Message(role="assistant", content="Let me see.", reasoning="Hm.", tool_calls=calls),
        Message(role="tool", content="Sunny.", tool_call_id="a"),
        Message(role="tool", content="Noon.", tool_call_id="b"),
        Message(role="assistant", content="Sunny."),
        Message(role="assistant", content="And noon."),
    )


def test_tools_choice_effort_and_formats() -> None:
    chat = chat_of(tools=[TOOL], tool_choice={"type": "function", "name": "weather"}, reasoning={"effort": "low"})
    assert (chat.tools[0].name, chat.tools[0].strict, chat.reasoning_effort) == ("weather", False, "low")
    assert (chat.tool_choice.mode, chat.tool_choice.names, chat.tool_choice.parallel) == (
        "required",
        ("weather",),
        True,
    )
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]}
    chat = chat_of(tools=[TOOL], tool_choice=allowed, parallel_tool_calls=False)
    assert (chat.tool_choice.mode, chat.tool_choice.names, chat.tool_choice.parallel) == ("auto", ("weather",), False)
    grammar = translated(text={"format": {"type": "json_object"}}).grammar
    assert grammar is not None and grammar.kind == "json_object"
    generation = translated(max_output_tokens=5, temperature=0, top_p=0.5, text={"verbosity": "low"})
    sampling = generation.sampling
    assert (generation.max_tokens, sampling.temperature, sampling.top_p, generation.grammar) == (5, 0, 0.5, None)
    assert translated().max_tokens == 64


SPACE: Any = {"type": "namespace", "name": "agents", "description": "d", "tools": [TOOL]}


def test_functions_in_a_namespace_keep_it() -> None:
    assert [tool.name for tool in chat_of(tools=[TOOL, SPACE]).tools] == ["weather", "agents__weather"]
    call = ToolCallDelta(index=0, id="call_a", name="agents__weather", arguments="{}")
    ends: list[Event] = [call, ChoiceFinished("tool_calls"), Finished(usage=Usage())]
    response = told(ends, tools=[TOOL, SPACE])[-1]["response"]
    [item] = response["output"]
    assert (item["namespace"], item["name"]) == ("agents", "weather")
    assert response["tools"][1]["tools"][0]["name"] == "weather" and "tools" not in response["tools"][0]
    [back] = turns(item, tools=[TOOL, SPACE])
    assert back.tool_calls == (ToolCall("call_a", "agents__weather", "{}"),)


IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Look"}, IMAGE]}]},
            "input.0.content.1",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
        ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input.0.type"),
        ({"input": [{"type": "function_call_output", "output": "Sunny."}]}, "input.0.call_id"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tools": [{**SPACE, "tools": []}]}, "tools.0.tools"),
        ({"tools": [{**SPACE, "tools": [TOOL, {"type": "custom", "name": "c"}]}]}, "tools.0.tools.1.type"),
        ({"tools": [{"type": "function", "name": "f", "parameters": {"type": "array"}}]}, "tools.0.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"previous_response_id": "resp_0"}, "previous_response_id"),
    ],
)
def test_what_does_not_fit_is_a_400_that_names_it(openai: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.post("/responses", body={"model": "paris", "input": FRANCE, "stream": True, **fields}, cast_to=object)
    assert refused.value.param == param


def test_what_a_coding_agent_sends_is_taken(http: httpx.Client) -> None:
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
            SPACE,
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


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(ResponsesRequest.__struct_fields__), ANYTHING, max_size=5))
def test_whatever_is_asked_is_a_request_or_a_refusal(fields: dict[str, Any]) -> None:
    try:
        body = msgspec.json.encode(fields)
    except Exception:
        return
    try:
        request = parse(body, _decoder)
        response_generation(request, located_items(request, ResponseStore(), ""), Defaults(), id="resp_1")
    except (InvalidRequest, NotFound) as refused:
        assert refused.message


# ---- what is kept


def test_a_response_is_kept_until_it_is_deleted(openai: OpenAI) -> None:
    reply = openai.responses.create(model="paris", input=FRANCE)
    assert openai.responses.retrieve(reply.id).to_dict() == reply.to_dict()
    openai.responses.delete(reply.id)
    for forgotten in (openai.responses.retrieve, openai.responses.delete):
        with pytest.raises(NotFoundError, match=reply.id):
            forgotten(reply.id)
    with pytest.raises(BadRequestError) as refused:
        openai.responses.create(model="paris", input=FRANCE, previous_response_id=reply.id)
    assert refused.value.code == "previous_response_not_found"


def test_store_false_is_honoured(openai: OpenAI) -> None:
    reply = openai.responses.create(model="paris", input=FRANCE, store=False)
    with pytest.raises(NotFoundError):
        openai.responses.retrieve(reply.id)


def test_a_streamed_response_is_kept_before_its_end_is_told(openai: OpenAI) -> None:
    for event in openai.responses.create(model="paris", input=FRANCE, stream=True):
        if event.type == "response.completed":
            assert openai.responses.retrieve(event.response.id).output_text == PARIS


def test_an_item_may_be_sent_back_by_its_id(openai: OpenAI) -> None:
    first = openai.responses.create(model="paris", input=FRANCE)
    assert first.output[0].id is not None
    user: Any = {"role": "user", "content": "Really?"}
    asked: Any = [{"role": "user", "content": FRANCE}, {"type": "item_reference", "id": first.output[0].id}, user]
    by_id = openai.responses.create(model="paris", input=asked)
    asked[1] = {"role": "assistant", "content": PARIS}
    by_hand = openai.responses.create(model="paris", input=asked)
    assert by_id.usage is not None and by_hand.usage is not None
    assert by_id.usage.input_tokens == by_hand.usage.input_tokens
    asked[1] = {"type": "item_reference", "id": "msg_0"}
    with pytest.raises(NotFoundError) as refused:
        openai.responses.create(model="paris", input=asked)
    assert refused.value.param == "input.1.id"


def test_nobody_reads_anothers_responses() -> None:
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


def kept_response(id: str, text: str = "x") -> Response:
    response = rendering().whole("m", Collected([CollectedChoice(text=text)]))
    response.id = id
    return response


def test_the_least_recently_used_goes_first() -> None:
    store = ResponseStore(max_responses=2)
    for id in ("resp_a", "resp_b"):
        store.put("me", kept_response(id), ())
    store.get("me", "resp_a")
    store.put("me", kept_response("resp_c"), ())
    store.put("you", kept_response("resp_d"), ())  # whose store is another
    assert store.get("me", "resp_a") and store.get("me", "resp_c") and store.get("you", "resp_d")
    with pytest.raises(NotFound):
        store.get("me", "resp_b")


def test_the_store_is_bounded_by_size_too() -> None:
    store = ResponseStore(max_bytes=10_000)
    for id in ("resp_a", "resp_b"):
        store.put("me", kept_response(id, "x" * 3000), ())  # told twice: in the response, and as an item
    with pytest.raises(NotFound):
        store.get("me", "resp_a")
    store.put("me", kept_response("resp_c"), (InputItem(role="user", content="x" * 20_000),))
    with pytest.raises(NotFound):
        store.get("me", "resp_c")
    store.put("me", kept_response("resp_d"), ())  # what was forgotten takes no room
    assert store.item("me", store.get("me", "resp_d").items[-1].id or "") is not None
