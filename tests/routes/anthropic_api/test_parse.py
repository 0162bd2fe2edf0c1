"""A request of Anthropic's API becomes a Generation."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.generation import (
    Generation,
    Message,
    ToolCall,
)
from gateway.routes.anthropic_api.wire import ContentBlock, MessagesRequest
from tests.routes.anthropic_api.helpers import TOOL, generation
from tests.support.json_values import JSON_VALUES


def messages_of(*messages: Any, **fields: Any) -> tuple[Message, ...]:
    return generation(messages=messages, **fields).prompt.messages  # type: ignore[union-attr]


def test_content_blocks_become_messages() -> None:
    result = {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "Rain."}]}
    content = [{"type": "thinking", "thinking": "Hm", "signature": "s"}, {"type": "text", "text": "Let me see."}]
    assert messages_of(
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [*content, {"type": "tool_use", "id": "t1", "name": "weather", "input": {"x": 1}}],
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
def test_tool_choice_forms(choice: Any, mode: str, names: tuple[str, ...], parallel: bool) -> None:
    chat: Any = generation(tools=[TOOL], tool_choice=choice).prompt
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
def test_thinking_sets_the_reasoning_effort(fields: Any, effort: str | None) -> None:
    chat: Any = generation(**fields).prompt
    assert chat.reasoning_effort == effort


def test_sampling_and_limits_are_read() -> None:
    made = generation(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["x"], metadata={"user_id": "u"})
    sampling = made.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (made.stop, made.max_tokens) == (("x",), 64)


FIELDS = [*MessagesRequest.__struct_fields__, "unknown"]
BLOCKS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "tool_use", "tool_result", "thinking"])},
    optional={name: JSON_VALUES for name in ContentBlock.__struct_fields__ if name != "type"},
)


MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text() | st.lists(BLOCKS, max_size=3)}
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=3), st.lists(MESSAGES, max_size=3))
def test_any_json_gives_a_generation_or_invalid_request(fields: Any, messages: Any) -> None:
    with suppress(InvalidRequest):
        assert isinstance(generation(**{"messages": messages, **fields}), Generation)


CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}
FOUND = {"type": "web_search_result", "url": "https://a.example", "title": "t", "encrypted_content": "AAAA"}


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ({"type": "tool_reference", "tool_name": "Read"}, "[tool Read]"),
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "abc"}}, "abc"),
        ({"type": "document", "title": "T", "source": {"type": "text", "data": "abc"}, "context": "c"}, "T\nabc"),
        ({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x"}]}}, "x"),
        ({"type": "document", "source": {"type": "content", "content": "x"}}, "x"),
        (PDF, "[document omitted: the model reads only text]"),
        ({"type": "image", "source": {"type": "url", "url": "u"}}, "[image omitted: the model reads only text]"),
        (
            {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "x"}]},
            "t\ns\nx",
        ),
        ({"type": "container_upload", "file_id": "f"}, ""),
        ({"type": "block_of_next_year", "content": {"a": 1}, "source": "x"}, ""),
    ],
)
def test_block_of_a_tool_result_becomes_text_or_nothing(block: Any, text: str) -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
    messages = messages_of({"role": "user", "content": "a"}, CALL, {"role": "user", "content": [result]})
    assert messages[2:] == (Message(role="tool", content=text, tool_call_id="t"),)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "redacted_thinking", "data": "AAAA"},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": [FOUND]},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": {"type": "error", "error_code": "x"}},
        {"type": "code_execution_tool_result", "tool_use_id": "s", "content": {"stdout": "1", "return_code": 0}},
        {"type": "mcp_tool_use", "id": "s", "name": "n", "server_name": "m", "input": {}},
        {"type": "mcp_tool_result", "tool_use_id": "s", "is_error": False, "content": [{"type": "text", "text": "x"}]},
        {"type": "compaction", "content": "x"},
    ],
)
def test_block_of_another_server_is_left_out_of_the_answer(block: Any) -> None:
    answer = {"role": "assistant", "content": [block, {"type": "text", "text": "Yes."}]}
    messages = messages_of({"role": "user", "content": "a"}, answer, {"role": "user", "content": "b"})
    assert messages[1] == Message(role="assistant", content="Yes.")
    alone = messages_of({"role": "user", "content": "a"}, {"role": "assistant", "content": [block]})
    assert alone[1] == Message(role="assistant", content="")


def test_document_of_the_newest_turn_is_read_if_it_is_text() -> None:
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "abc"}}
    [message] = messages_of({"role": "user", "content": [text, {"type": "text", "text": "Sum up."}]})
    assert message.content == "abc\nSum up."
    with pytest.raises(InvalidRequest) as caught:
        messages_of({"role": "user", "content": [PDF]})
    assert caught.value.param == "messages.0.content.0"
    earlier = messages_of({"role": "user", "content": [PDF]}, {"role": "user", "content": "And?"})
    assert earlier[0].content == "[document omitted: the model reads only text]"


def test_deep_document_is_refused() -> None:
    content: Any = "x"
    for _ in range(40):
        content = [{"type": "document", "source": {"type": "content", "content": content}}]
    with pytest.raises(InvalidRequest):
        messages_of({"role": "user", "content": content})
