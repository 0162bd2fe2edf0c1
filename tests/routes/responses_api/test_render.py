"""Events become a response or a stream of events."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from gateway.errors import GatewayError
from gateway.generation import (
    ChoiceFinished,
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from gateway.routes.collect import Collected, collect
from gateway.routes.responses_api.wire_response import Response
from tests.routes.responses_api.helpers import (
    NAMESPACE,
    TOOL,
    chat_of,
    events_of,
    messages_of,
    rendering,
)


def streamed_payloads(events: list[Event], **fields: Any) -> list[dict[str, Any]]:
    made = rendering(**fields)
    text = b"".join(piece for event in events for piece in made.pieces("m", event)).decode()
    return [payload for _, payload in events_of(text)]


REASONING_TEXT_AND_CALLS: list[Event] = [
    Started(prompt_tokens=9, cached_tokens=4),
    ReasoningDelta("Hm"), ReasoningDelta("."), TextDelta("Let me "), TextDelta("see."),
    ToolCallDelta(index=0, id="call_a", name="weather"), ToolCallDelta(index=0, arguments='{"at":'),
    ToolCallDelta(index=0, arguments='"Paris"}'), ToolCallDelta(index=1, id="call_b", name="clock", arguments="{}"),
    ChoiceFinished("tool_calls"),
    Finished(usage=Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=20, reasoning_tokens=2)),
]  # fmt: skip


def test_failure_before_the_first_event_starts_with_created() -> None:
    events = events_of(rendering().failed(GatewayError("No.")).decode())
    assert [name for name, _ in events] == ["response.created", "response.in_progress", "response.failed"]


def test_reasoning_text_and_calls_are_separate_items() -> None:
    payloads = streamed_payloads(REASONING_TEXT_AND_CALLS)
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
    reasoning = [payload["type"].removeprefix("response.") for payload in payloads if payload.get("output_index") == 0]
    assert reasoning == [
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
    ]  # fmt: skip
    for payload in payloads:
        if "item_id" in payload:
            assert payload["item_id"] == output[payload["output_index"]]["id"]


async def test_whole_reply_equals_the_streamed_response() -> None:
    async def events() -> Any:
        for event in REASONING_TEXT_AND_CALLS:
            yield event

    collected: Collected = await collect(events(), 1)
    saved: list[Response] = []
    whole = json.loads(msgspec.json.encode(rendering(saved.append).whole("m", collected)))
    streamed = streamed_payloads(REASONING_TEXT_AND_CALLS)[-1]["response"]
    assert whole | {"created_at": 0} == streamed | {"created_at": 0} and len(saved) == 1


def test_function_of_a_namespace_keeps_it() -> None:
    assert [tool.name for tool in chat_of(tools=[TOOL, NAMESPACE]).tools] == ["weather", "agents__weather"]
    call = ToolCallDelta(index=0, id="call_a", name="agents__weather", arguments="{}")
    ends: list[Event] = [call, ChoiceFinished("tool_calls"), Finished(usage=Usage())]
    response = streamed_payloads(ends, tools=[TOOL, NAMESPACE])[-1]["response"]
    [item] = response["output"]
    assert (item["namespace"], item["name"]) == ("agents", "weather")
    assert response["tools"][1]["tools"][0]["name"] == "weather" and "tools" not in response["tools"][0]
    [back] = messages_of(item, tools=[TOOL, NAMESPACE])
    assert back.tool_calls == (ToolCall("call_a", "agents__weather", "{}"),)
