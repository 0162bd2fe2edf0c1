"""Events become chat completions: tool calls, reasoning, interleaved choices."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any

import msgspec

from gateway.generation import (
    Chat,
    ChoiceFinished,
    Event,
    Finished,
    Generation,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from gateway.routes.collect import collect
from gateway.routes.openai_api.render_chat import ChatRendering

STARTED = Started(prompt_tokens=5)
FINISHED = Finished(
    usage=Usage(
        prompt_tokens=5,
        cached_tokens=2,
        completion_tokens=9,
        reasoning_tokens=4,
        accepted_prediction_tokens=3,
        rejected_prediction_tokens=1,
    )
)
CALLS: list[Event] = [
    STARTED,
    ToolCallDelta(index=0, id="call_a", name="weather"),
    ToolCallDelta(index=0, arguments='{"city": '),
    ToolCallDelta(index=0, arguments='"Rome"}'),
    ToolCallDelta(index=1, id="call_b", name="clock", arguments="{}"),
    ChoiceFinished("tool_calls"),
    FINISHED,
]


def generation(**fields: Any) -> Generation:
    return Generation(id="chatcmpl-1", model="requested", prompt=Chat(messages=()), **fields)


async def whole(events: Iterable[Event], **fields: Any) -> dict[str, Any]:
    async def stream() -> AsyncGenerator[Event, None]:
        for event in events:
            yield event

    made = generation(**fields)
    reply = ChatRendering(made).whole("served", await collect(stream(), made.n))
    return msgspec.json.decode(msgspec.json.encode(reply), type=dict)


def streamed(events: Iterable[Event], *, with_usage: bool = False, **fields: Any) -> list[dict[str, Any]]:
    rendering = ChatRendering(generation(**fields), with_usage=with_usage)
    frames = [piece for event in events for piece in rendering.pieces("served", event)]
    assert frames.pop() == b"data: [DONE]\n\n"
    return [msgspec.json.decode(frame.removeprefix(b"data: ")) for frame in frames]


def deltas(events: Iterable[Event], **fields: Any) -> list[dict[str, Any]]:
    return [chunk["choices"][0]["delta"] for chunk in streamed(events, **fields)]


async def test_whole_reply_has_complete_tool_calls() -> None:
    [choice] = (await whole(CALLS))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
            {"id": "call_b", "type": "function", "function": {"name": "clock", "arguments": "{}"}},
        ],
    }


def test_streamed_tool_call_sends_name_first_then_arguments() -> None:
    def first(index: int, id: str, name: str) -> dict[str, Any]:
        call = {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
        return {"tool_calls": [call]}

    def more(index: int, arguments: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}

    assert deltas(CALLS) == [
        {"role": "assistant", "content": ""},
        first(0, "call_a", "weather"),
        more(0, '{"city": '),
        more(0, '"Rome"}'),
        first(1, "call_b", "clock"),
        more(1, "{}"),
        {},
    ]


async def test_text_before_a_tool_call_is_kept() -> None:
    [choice] = (await whole([STARTED, TextDelta("Let me look."), *CALLS[1:]]))["choices"]
    assert choice["message"]["content"] == "Let me look."
    assert len(choice["message"]["tool_calls"]) == 2


async def test_reasoning_is_a_separate_field() -> None:
    events = [STARTED, ReasoningDelta("2 and 2"), TextDelta("4"), ChoiceFinished("stop"), FINISHED]
    [choice] = (await whole(events))["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("4", "2 and 2")
    assert deltas(events) == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "2 and 2"},
        {"content": "4"},
        {},
    ]


async def test_empty_answer_has_empty_content() -> None:
    events = [STARTED, ChoiceFinished("stop"), FINISHED]
    assert (await whole(events))["choices"][0]["message"]["content"] == ""
    assert deltas(events) == [{"role": "assistant", "content": ""}, {}]


async def test_usage_has_details() -> None:
    expected = {
        "prompt_tokens": 5,
        "completion_tokens": 9,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 2, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 4,
            "accepted_prediction_tokens": 3,
            "rejected_prediction_tokens": 1,
            "audio_tokens": 0,
        },
    }
    events = [STARTED, TextDelta("4"), ChoiceFinished("stop"), FINISHED]
    assert (await whole(events))["usage"] == expected
    assert streamed(events, with_usage=True)[-1]["usage"] == expected


def test_stream_names_the_fallback_that_took_over() -> None:
    rendering = ChatRendering(generation())
    assert list(rendering.pieces("requested", STARTED)) == []  # the fallback may still take over
    frames = list(rendering.pieces("fallback", TextDelta("4")))
    assert all(msgspec.json.decode(frame.removeprefix(b"data: "))["model"] == "fallback" for frame in frames)


async def test_interleaved_choices_are_separated() -> None:
    events: list[Event] = [
        STARTED,
        TextDelta("a", 0),
        TextDelta("x", 1),
        ChoiceFinished("stop", 1),
        TextDelta("b", 0),
        ChoiceFinished("length", 0),
        FINISHED,
    ]
    choices = (await whole(events, n=2))["choices"]
    assert [(c["index"], c["message"]["content"], c["finish_reason"]) for c in choices] == [
        (0, "ab", "length"),
        (1, "x", "stop"),
    ]
    chunks = [chunk["choices"][0] for chunk in streamed(events, n=2)]
    assert [c["index"] for c in chunks if c["delta"].get("role")] == [0, 1]
    assert [(c["index"], c["finish_reason"]) for c in chunks if c["finish_reason"]] == [(1, "stop"), (0, "length")]


async def test_logprobs_have_a_floor_and_bytes() -> None:
    never = TokenLogprob("never", tuple(b"never"), float("-inf"))
    half = TokenLogprob("caf\ufffd", (99, 97, 102, 195), -0.5, (never,))
    events = [STARTED, TextDelta("caf", logprobs=(half,)), ChoiceFinished("stop"), FINISHED]
    expected = {
        "token": "caf\ufffd",
        "logprob": -0.5,
        "bytes": [99, 97, 102, 195],
        "top_logprobs": [{"token": "never", "logprob": -9999.0, "bytes": list(b"never")}],
    }
    [choice] = (await whole(events, logprobs=1))["choices"]
    assert choice["logprobs"] == {"content": [expected], "refusal": None}
    assert streamed(events, logprobs=1)[1]["choices"][0]["logprobs"]["content"] == [expected]


def test_token_without_text_is_sent_with_its_logprob() -> None:
    half = TokenLogprob("\ufffd", (195,), -0.1)
    chunks = streamed([STARTED, TextDelta("", logprobs=(half,)), ChoiceFinished("stop"), FINISHED], logprobs=0)
    assert chunks[1]["choices"][0]["delta"] == {"content": ""}
    assert chunks[1]["choices"][0]["logprobs"]["content"][0]["bytes"] == [195]
