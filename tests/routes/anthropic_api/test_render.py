"""Events become messages of Anthropic's API."""

from __future__ import annotations

from gateway.generation import (
    ChoiceFinished,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from gateway.routes.anthropic_api.render import AnthropicRendering
from tests.routes.anthropic_api.helpers import events_of, generation


def test_thinking_text_and_calls_are_separate_blocks() -> None:
    rendering = AnthropicRendering(generation())
    events = [
        Started(prompt_tokens=9, cached_tokens=4),
        ReasoningDelta("Hm"), ReasoningDelta("."), TextDelta("Let me see."),
        ToolCallDelta(index=0, id="call_a", name="weather"), ToolCallDelta(index=0, arguments='{"at":'),
        ToolCallDelta(index=0, arguments='"Paris"}'), ToolCallDelta(index=1, id="call_b", name="clock", arguments="{}"),
        ChoiceFinished("tool_calls"), Finished(usage=Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=20)),
    ]  # fmt: skip
    text = b"".join(piece for event in events for piece in rendering.pieces("m", event)).decode()
    payloads = [payload for _, payload in events_of(text)]
    starts = [payload["content_block"] for payload in payloads if payload["type"] == "content_block_start"]
    assert starts == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "call_a", "name": "weather", "input": {}},
        {"type": "tool_use", "id": "call_b", "name": "clock", "input": {}},
    ]
    assert [payload["index"] for payload in payloads if payload["type"] == "content_block_stop"] == [0, 1, 2, 3]
    pieces = [payload["delta"].get("partial_json") for payload in payloads if payload["type"] == "content_block_delta"]
    assert pieces == [None, None, None, '{"at":', '"Paris"}', "{}"]
    assert payloads[0]["message"]["usage"]["cache_read_input_tokens"] == 4
    assert payloads[-2]["delta"]["stop_reason"] == "tool_use"
    assert payloads[-2]["usage"]["input_tokens"] == 5
