"""Anthropic's door: its official client and raw bytes against scripted models, then against the real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anthropic as sdk
import httpx
import msgspec
import pytest
from anthropic import Anthropic
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import Defaults, ServerConfig
from gateway.errors import InvalidRequest
from gateway.generation import (
    ChoiceFinished,
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
from gateway.routes.anthropic_api.parse import messages_generation
from gateway.routes.anthropic_api.render import AnthropicRendering
from gateway.routes.anthropic_api.wire import ContentBlock, MessagesRequest
from gateway.server.body import parse
from tests.routes.conftest import PARIS
from tests.routes.openai_api.test_parse_completions import ANYTHING
from tests.support.server import Running, config_of, scripted, serving

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOL: Any = {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}
GREEDY = {"temperature": 0}  # which the newest client no longer names
PATH = "/v1/messages"

_decoder = msgspec.json.Decoder(MessagesRequest)


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def real(local: Running) -> Iterator[Anthropic]:
    with Anthropic(base_url=local.url, api_key="x", max_retries=0) as client:
        yield client


def body(model: str = "paris", **fields: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 64, "messages": FRANCE, **fields}


def translated(**fields: Any) -> Generation:
    request = parse(msgspec.json.encode(body(**fields)), _decoder)
    return messages_generation(request, Defaults(), id="msg_1")


def turns(*messages: Any, **fields: Any) -> tuple[Message, ...]:
    return translated(messages=messages, **fields).prompt.messages  # type: ignore[union-attr]


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The named events of a stream, comments left out."""
    frames = [frame.split("\n") for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    return [(name.removeprefix("event: "), msgspec.json.decode(data.removeprefix("data: "))) for name, data in frames]


# ---- the real model


def test_the_real_model_says_paris_streamed_and_not(real: Anthropic) -> None:
    asked: Any = {"model": "smollm2", "max_tokens": 32_000, "messages": FRANCE, "extra_body": GREEDY}
    reply = real.messages.create(**{**asked, "max_tokens": 64})
    assert reply.content[0].type == "text" and "Paris" in reply.content[0].text
    assert (reply.role, reply.stop_reason, reply.model) == ("assistant", "end_turn", "smollm2")
    with real.messages.stream(**asked) as stream:  # as Claude Code asks: clamped to what the context leaves
        final = stream.get_final_message()
    assert final.content[0].type == "text" and final.content[0].text == reply.content[0].text
    assert final.usage.output_tokens == reply.usage.output_tokens


def test_counted_tokens_are_those_of_the_prompt(real: Anthropic) -> None:
    asked: Any = {"model": "smollm2", "messages": FRANCE, "system": "Be brief."}
    counted = real.messages.count_tokens(**asked).input_tokens
    usage = real.messages.create(**asked, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0) > 10


def test_the_system_prompt_is_read_as_text_or_as_blocks(real: Anthropic) -> None:
    text = real.messages.count_tokens(model="smollm2", messages=FRANCE, system="Be brief.").input_tokens
    blocks: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    assert real.messages.count_tokens(model="smollm2", messages=FRANCE, system=blocks).input_tokens == text
    assert real.messages.count_tokens(model="smollm2", messages=FRANCE, system="Be very brief.").input_tokens > text


def test_an_assistant_turn_at_the_end_is_continued(real: Anthropic) -> None:
    begun: Any = [*FRANCE, {"role": "assistant", "content": "The capital of France is"}]
    reply = real.messages.create(model="smollm2", max_tokens=8, messages=begun, extra_body=GREEDY)
    assert reply.content[0].type == "text" and reply.content[0].text.strip().startswith("Paris")


def test_an_answer_keeps_to_its_schema(real: Anthropic) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    schema["additionalProperties"] = False
    output: Any = {"format": {"type": "json_schema", "schema": schema}}
    reply = real.messages.create(
        model="smollm2",
        max_tokens=64,
        messages=[{"role": "user", "content": "A number, please."}],
        output_config=output,
    )
    assert reply.content[0].type == "text"
    assert reply.stop_reason == "max_tokens" or isinstance(msgspec.json.decode(reply.content[0].text)["n"], int)


def test_a_prompt_that_is_too_long_is_refused_in_the_words_clients_know(real: Anthropic) -> None:
    long: Any = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(sdk.BadRequestError, match="prompt is too long") as refused:
        real.messages.create(model="smollm2", max_tokens=8, messages=long)
    assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]


# ---- replies


def test_reply_has_every_field_a_client_reads(http: httpx.Client) -> None:
    response = http.post(PATH, json=body(), params={"beta": "true"}, headers={"anthropic-version": "2023-06-01"})
    reply = response.json()
    assert reply.pop("id").startswith("msg_")
    assert reply == {
        "type": "message",
        "role": "assistant",
        "model": "paris",
        "content": [{"type": "text", "text": PARIS}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 6,
            "output_tokens": 7,
            "cache_read_input_tokens": 0,
            "cache_creation_input_tokens": 0,
        },
    }


def test_stream_has_the_events_in_order(http: httpx.Client) -> None:
    response = http.post(PATH, json=body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert all(name == payload["type"] for name, payload in events)
    names = [name for name, _ in events]
    deltas = names.count("content_block_delta")
    assert names == [
        "message_start", "ping", "content_block_start", *["content_block_delta"] * deltas, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    start, end = events[0][1]["message"], events[-2][1]
    assert (start["model"], start["content"], start["stop_reason"]) == ("paris", [], None)
    assert start["usage"]["input_tokens"] == 6
    assert "".join(payload["delta"]["text"] for name, payload in events if name == "content_block_delta") == PARIS
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert end["usage"]["output_tokens"] == 7


def test_a_stop_sequence_is_named(client: Anthropic) -> None:
    reply = client.messages.create(**body(stop_sequences=["nowhere", "France"]))
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "France")
    assert reply.content[0].type == "text" and reply.content[0].text == "The capital of "
    with client.messages.stream(**body(stop_sequences=["France"])) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "France")


def test_the_limit_ends_with_max_tokens(client: Anthropic) -> None:
    assert client.messages.create(**body(max_tokens=3)).stop_reason == "max_tokens"


def test_thinking_text_and_calls_are_blocks_of_their_own() -> None:
    rendering = AnthropicRendering(translated())
    events = [
        Started(prompt_tokens=9, cached_tokens=4),
        ReasoningDelta("Hm"), ReasoningDelta("."), TextDelta("Let me see."),
        ToolCallDelta(index=0, id="call_a", name="weather"), ToolCallDelta(index=0, arguments='{"at":'),
        ToolCallDelta(index=0, arguments='"Paris"}'), ToolCallDelta(index=1, id="call_b", name="clock", arguments="{}"),
        ChoiceFinished("tool_calls"), Finished(usage=Usage(prompt_tokens=9, cached_tokens=4, completion_tokens=20)),
    ]  # fmt: skip
    text = b"".join(piece for event in events for piece in rendering.pieces("m", event)).decode()
    told = [payload for _, payload in events_of(text)]
    starts = [payload["content_block"] for payload in told if payload["type"] == "content_block_start"]
    assert starts == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "text", "text": ""},
        {"type": "tool_use", "id": "call_a", "name": "weather", "input": {}},
        {"type": "tool_use", "id": "call_b", "name": "clock", "input": {}},
    ]
    assert [payload["index"] for payload in told if payload["type"] == "content_block_stop"] == [0, 1, 2, 3]
    pieces = [payload["delta"].get("partial_json") for payload in told if payload["type"] == "content_block_delta"]
    assert pieces == [None, None, None, '{"at":', '"Paris"}', "{}"]
    assert told[0]["message"]["usage"]["cache_read_input_tokens"] == 4
    assert told[-2]["delta"]["stop_reason"] == "tool_use"
    assert told[-2]["usage"]["input_tokens"] == 5


# ---- what is understood


def test_results_of_tools_become_turns() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Rain."}]}
    said = [{"type": "thinking", "thinking": "Hm", "signature": "s"}, {"type": "text", "text": "Let me see."}]
    assert turns(
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [*said, {"type": "tool_use", "id": "t1", "name": "weather", "input": {"x": 1}}],
        },
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
        system="Be brief.",
    ) == (
        Message(role="system", content="Be brief."),
        Message(role="user", content="a\nb"),
        Message(
            role="assistant",
            content="Let me see.",
            reasoning="Hm",
            tool_calls=(ToolCall("t1", "weather", '{"x":1}'),),
        ),
        Message(role="tool", content="Rain.", tool_call_id="t1"),
        Message(role="user", content="And?"),
    )


@pytest.mark.parametrize(
    ("choice", "mode", "names", "parallel"),
    [
        ({"type": "auto"}, "auto", (), True),
        ({"type": "none"}, "none", (), True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", (), False),
        ({"type": "tool", "name": "weather"}, "required", ("weather",), True),
        (None, "auto", (), True),
    ],
)
def test_tool_choice(choice: Any, mode: str, names: tuple[str, ...], parallel: bool) -> None:
    chat: Any = translated(tools=[TOOL], tool_choice=choice).prompt
    assert chat.tools[0].name == "weather"
    assert (chat.tool_choice.mode, chat.tool_choice.names, chat.tool_choice.parallel) == (mode, names, parallel)


@pytest.mark.parametrize(
    ("fields", "effort"),
    [
        ({}, None),
        ({"thinking": {"type": "disabled"}}, "none"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "medium"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, "xhigh"),
    ],
)
def test_thinking_is_the_templates_switch(fields: Any, effort: str | None) -> None:
    chat: Any = translated(**fields).prompt
    assert chat.reasoning_effort == effort


def test_sampling_and_limits_are_passed_on() -> None:
    generation = translated(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["x"], metadata={"user_id": "u"})
    sampling = generation.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (generation.stop, generation.max_tokens) == (("x",), 64)


# ---- what is refused


DEEP = msgspec.json.decode(b"[" * 200 + b"]" * 200)
CALL = {"type": "tool_use", "id": "a", "name": "b"}
IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, IMAGE]}]}, "messages.0.content.1"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [IMAGE]}]}
                ]
            },
            "messages.0.content.0.content.0",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]}, "content.0.name"),
        (
            {"messages": [{"role": "assistant", "content": [CALL | {"input": {"x": DEEP}}]}]},
            "messages.0.content.0.input",
        ),
        ({"messages": []}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ],
)
def test_refused_by_name(client: Anthropic, http: httpx.Client, fields: Any, name: str) -> None:
    response = http.post(PATH, json=body(**fields))
    assert response.status_code == 400
    told = response.json()
    assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    assert name in told["error"]["message"]


def test_max_tokens_must_be_there(http: httpx.Client) -> None:
    response = http.post(PATH, json={"model": "paris", "messages": FRANCE})
    assert "max_tokens" in response.json()["error"]["message"]


def test_errors_have_anthropics_form_and_class(client: Anthropic, http: httpx.Client) -> None:
    with pytest.raises(sdk.NotFoundError, match="nobody") as missing:
        client.messages.create(**body("nobody"))
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(sdk.InternalServerError) as down:
        client.messages.create(**body("unloadable"))
    assert down.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
    assert http.get(PATH).json()["type"] == "error"
    assert http.post(PATH, content=b"{").json()["type"] == "error"


def test_counting_needs_the_tokenizer(client: Anthropic) -> None:
    with pytest.raises(sdk.BadRequestError, match="tokenizer of paris"):
        client.messages.count_tokens(model="paris", messages=FRANCE)


def test_a_stream_that_fails_midway_ends_with_an_error_event(client: Anthropic, http: httpx.Client) -> None:
    events = events_of(http.post(PATH, json=body("breaks", stream=True)).text)
    assert events[-1][0] == "error"
    assert events[-1][1]["error"] == {"type": "overloaded_error", "message": "The device fell over."}
    with pytest.raises(sdk.APIStatusError, match="fell over"), client.messages.stream(**body("breaks")) as stream:
        stream.until_done()


def test_the_key_comes_in_anthropics_header() -> None:
    server = ServerConfig(api_keys={"me": "secret"})
    with serving(config_of({"paris": scripted(PARIS)}, server)) as running:
        with Anthropic(base_url=running.url, api_key="secret", max_retries=0) as client:
            assert client.messages.create(**body()).stop_reason == "end_turn"
        with Anthropic(base_url=running.url, api_key="wrong", max_retries=0) as client:
            with pytest.raises(sdk.AuthenticationError) as refused:
                client.messages.create(**body())
            assert refused.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]


# ---- tools, and what editors send


WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def test_a_tool_that_is_demanded_is_called_and_its_result_read(real: Anthropic) -> None:
    asked: Any = {
        "model": "smollm2",
        "max_tokens": 100,
        "tools": [WEATHER],
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "extra_body": GREEDY,
    }
    choice: Any = {"type": "tool", "name": "get_weather"}
    reply = real.messages.create(**asked, tool_choice=choice)
    [call] = [block for block in reply.content if block.type == "tool_use"]
    assert (reply.stop_reason, call.name, list(call.input)) == ("tool_use", "get_weather", ["city"])
    with real.messages.stream(**asked, tool_choice=choice) as stream:
        [streamed] = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert (streamed.name, streamed.input) == (call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain, 9 degrees."}
    asked["messages"] += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
    answer = real.messages.create(**asked, tool_choice={"type": "none"})
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.content


def test_what_a_coding_agent_sends_is_taken(http: httpx.Client) -> None:
    """A large body with caching hints, many tools, a budget for thinking, and betas in the query."""
    cached = {"cache_control": {"type": "ephemeral"}}
    large = body(
        max_tokens=32_000,
        system=[{"type": "text", "text": "x" * 60_000, **cached}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hi.", **cached}]}],
        tools=[{**WEATHER, "name": f"mcp__server__tool_{i}", **cached} for i in range(24)],
        thinking={"type": "enabled", "budget_tokens": 31_999},
        metadata={"user_id": "u"},
        context_management={"edits": []},
        stream=True,
    )
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "interleaved-thinking-2025-05-14"}
    response = http.post(PATH, params={"beta": "true"}, json=large, headers=headers)
    assert events_of(response.text)[-1][0] == "message_stop"


# ---- anything


FIELDS = [*MessagesRequest.__struct_fields__, "unknown"]
BLOCKS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "tool_use", "tool_result", "thinking"])},
    optional={name: ANYTHING for name in ContentBlock.__struct_fields__ if name != "type"},
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text() | st.lists(BLOCKS, max_size=3)}
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=3), st.lists(MESSAGES, max_size=3))
def test_whatever_is_asked_is_a_request_or_a_refusal(fields: Any, messages: Any) -> None:
    with suppress(InvalidRequest):
        assert isinstance(translated(**{"messages": messages, **fields}), Generation)
