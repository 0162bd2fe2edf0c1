"""Events become lines of Ollama's API."""

from __future__ import annotations

from gateway.generation import (
    ChoiceFinished,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    Timings,
    ToolCallDelta,
    Usage,
)
from gateway.routes.ollama_api.render import OllamaRendering
from tests.routes.ollama_api.helpers import chat_generation, lines_of


def test_thinking_and_calls_are_separate_fields() -> None:
    rendering = OllamaRendering("chat", chat_generation())
    events = [
        Started(prompt_tokens=9), ReasoningDelta("Hm."), TextDelta("Let me see."),
        ToolCallDelta(index=0, id="call_a", name="weather"), ToolCallDelta(index=0, arguments='{"at":'),
        ToolCallDelta(index=0, arguments='"Paris"}'), ToolCallDelta(index=1, id="call_b", name="clock", arguments="{}"),
        ChoiceFinished("tool_calls"),
        Finished(usage=Usage(completion_tokens=20), timings=Timings(queue_s=1, ttft_s=3, total_s=7)),
    ]  # fmt: skip
    lines = lines_of(b"".join(piece for event in events for piece in rendering.pieces("m", event)).decode())
    assert [line["message"].get("thinking") for line in lines] == ["Hm.", None, None, None]
    assert lines[2]["message"]["tool_calls"] == [
        {"id": "call_a", "function": {"name": "weather", "arguments": {"at": "Paris"}}},
        {"id": "call_b", "function": {"name": "clock", "arguments": {}}},
    ]
    last = lines[3]
    assert (last["done_reason"], last["eval_count"]) == ("stop", 20)
    times = (last["prompt_eval_duration"], last["eval_duration"], last["total_duration"])
    assert times == (2 * 10**9, 4 * 10**9, 7 * 10**9)
