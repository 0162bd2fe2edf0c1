"""Anthropic's API over a socket: the official client and raw bytes, with scripted and with local models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic as sdk
import httpx
import msgspec
import pytest
from anthropic import Anthropic

from gateway.config.tables import ServerConfig
from tests.routes.anthropic_api.helpers import FRANCE, TOOL, body, events_of
from tests.routes.conftest import PARIS
from tests.support.server import Running, config_of, scripted, serving

GREEDY = {"temperature": 0}  # as `extra_body`: the newest client has no parameter
PATH = "/v1/messages"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.url, api_key="x", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def real(local: Running) -> Iterator[Anthropic]:
    with Anthropic(base_url=local.url, api_key="x", max_retries=0, timeout=60) as client:
        yield client


def test_answer_is_right_streamed_and_whole(real: Anthropic) -> None:
    request: Any = {"model": "smollm2", "max_tokens": 32_000, "messages": FRANCE, "extra_body": GREEDY}
    reply = real.messages.create(**{**request, "max_tokens": 64})
    assert reply.content[0].type == "text" and "Paris" in reply.content[0].text
    assert (reply.role, reply.stop_reason, reply.model) == ("assistant", "end_turn", "smollm2")
    with real.messages.stream(**request) as stream:  # Claude Code sends 32,000: clamped to the context length
        final = stream.get_final_message()
    assert final.content[0].type == "text" and final.content[0].text == reply.content[0].text
    assert final.usage.output_tokens == reply.usage.output_tokens


def test_count_tokens_equals_the_prompt_usage(real: Anthropic) -> None:
    request: Any = {"model": "smollm2", "messages": FRANCE, "system": "Be brief."}
    counted = real.messages.count_tokens(**request).input_tokens
    usage = real.messages.create(**request, max_tokens=1).usage
    assert counted == usage.input_tokens + (usage.cache_read_input_tokens or 0) > 10


def test_system_prompt_may_be_text_or_blocks(real: Anthropic) -> None:
    text = real.messages.count_tokens(model="smollm2", messages=FRANCE, system="Be brief.").input_tokens
    blocks: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    assert real.messages.count_tokens(model="smollm2", messages=FRANCE, system=blocks).input_tokens == text
    assert real.messages.count_tokens(model="smollm2", messages=FRANCE, system="Be very brief.").input_tokens > text


def test_last_assistant_message_is_continued(real: Anthropic) -> None:
    begun: Any = [*FRANCE, {"role": "assistant", "content": "The capital of France is"}]
    reply = real.messages.create(model="smollm2", max_tokens=8, messages=begun, extra_body=GREEDY)
    assert reply.content[0].type == "text" and reply.content[0].text.strip().startswith("Paris")


def test_answer_matches_its_schema(real: Anthropic) -> None:
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


def test_prompt_over_the_context_is_400_with_anthropic_message(real: Anthropic) -> None:
    long: Any = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(sdk.BadRequestError, match="prompt is too long") as refused:
        real.messages.create(model="smollm2", max_tokens=8, messages=long)
    assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]


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


def test_stream_events_are_in_order(http: httpx.Client) -> None:
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


def test_reply_names_the_stop_sequence(client: Anthropic) -> None:
    reply = client.messages.create(**body(stop_sequences=["nowhere", "France"]))
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "France")
    assert reply.content[0].type == "text" and reply.content[0].text == "The capital of "
    with client.messages.stream(**body(stop_sequences=["France"])) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "France")


def test_token_limit_gives_max_tokens_reason(client: Anthropic) -> None:
    assert client.messages.create(**body(max_tokens=3)).stop_reason == "max_tokens"


DEEP = msgspec.json.decode(b"[" * 200 + b"]" * 200)
CALL = {"type": "tool_use", "id": "a", "name": "b"}
IMAGE: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, IMAGE]}]}, "messages.0.content.1"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages.0.content.0.tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "a"}]}]}, "content.0.name"),
        (
            {"messages": [{"role": "assistant", "content": [CALL | {"input": {"x": DEEP}}]}]},
            "messages.0.content.0.input",
        ),
        ({"messages": []}, "messages"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ],
)
def test_invalid_field_is_400_with_its_name(client: Anthropic, http: httpx.Client, fields: Any, name: str) -> None:
    response = http.post(PATH, json=body(**fields))
    assert response.status_code == 400
    reply = response.json()
    assert (reply["type"], reply["error"]["type"]) == ("error", "invalid_request_error")
    assert name in reply["error"]["message"]


def test_missing_max_tokens_is_400(http: httpx.Client) -> None:
    response = http.post(PATH, json={"model": "paris", "messages": FRANCE})
    assert "max_tokens" in response.json()["error"]["message"]


def test_errors_have_anthropic_form_and_class(client: Anthropic, http: httpx.Client) -> None:
    with pytest.raises(sdk.NotFoundError, match="missing") as missing:
        client.messages.create(**body("missing"))
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    with pytest.raises(sdk.InternalServerError) as down:
        client.messages.create(**body("unloadable"))
    assert down.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
    assert http.get(PATH).json()["type"] == "error"
    assert http.post(PATH, content=b"{").json()["type"] == "error"


def test_count_tokens_without_a_tokenizer_is_400(client: Anthropic) -> None:
    with pytest.raises(sdk.BadRequestError, match="tokenizer of paris"):
        client.messages.count_tokens(model="paris", messages=FRANCE)


def test_failure_in_a_stream_is_a_last_error_event(client: Anthropic, http: httpx.Client) -> None:
    events = events_of(http.post(PATH, json=body("breaks", stream=True)).text)
    assert events[-1][0] == "error"
    assert events[-1][1]["error"] == {"type": "overloaded_error", "message": "The device fell over."}
    with pytest.raises(sdk.APIStatusError, match="fell over"), client.messages.stream(**body("breaks")) as stream:
        stream.until_done()


def test_api_key_is_read_from_x_api_key() -> None:
    server = ServerConfig(api_keys={"me": "secret"})
    with serving(config_of({"paris": scripted(PARIS)}, server)) as running:
        with Anthropic(base_url=running.url, api_key="secret", max_retries=0, timeout=60) as client:
            assert client.messages.create(**body()).stop_reason == "end_turn"
        with Anthropic(base_url=running.url, api_key="wrong", max_retries=0, timeout=60) as client:
            with pytest.raises(sdk.AuthenticationError) as refused:
                client.messages.create(**body())
            assert refused.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]


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


def test_required_tool_is_called_and_its_result_is_read(real: Anthropic) -> None:
    request: Any = {
        "model": "smollm2",
        "max_tokens": 100,
        "tools": [WEATHER],
        "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
        "extra_body": GREEDY,
    }
    choice: Any = {"type": "tool", "name": "get_weather"}
    reply = real.messages.create(**request, tool_choice=choice)
    [call] = [block for block in reply.content if block.type == "tool_use"]
    assert (reply.stop_reason, call.name, list(call.input)) == ("tool_use", "get_weather", ["city"])
    with real.messages.stream(**request, tool_choice=choice) as stream:
        [streamed] = [block for block in stream.get_final_message().content if block.type == "tool_use"]
    assert (streamed.name, streamed.input) == (call.name, call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain, 9 degrees."}
    request["messages"] += [{"role": "assistant", "content": reply.content}, {"role": "user", "content": [result]}]
    answer = real.messages.create(**request, tool_choice={"type": "none"})
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.content


def test_request_of_a_coding_agent_is_accepted(http: httpx.Client) -> None:
    """A large body with cache hints, many tools, a thinking budget and beta flags."""
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
