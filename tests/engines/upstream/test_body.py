"""chat_body and completion_body: a Generation as the body of OpenAI's API."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.engines.upstream.body import chat_body, completion_body
from gateway.errors import UnsupportedParameter
from gateway.generation import Chat, Generation, Grammar, Message, Text, Tool, ToolCall, ToolChoice
from gateway.sampling import Sampling

CHAT = Chat(messages=(Message(role="user", content="Hi"),))


def request(prompt: Any = CHAT, **fields: Any) -> Generation:
    return Generation(id="r", model="m", prompt=prompt, **fields)


def test_plain_chat_body_is_minimal() -> None:
    assert chat_body(request(), CHAT) == {
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 64,
        "stream_options": {"include_usage": True},
    }


def test_chat_body_with_every_field() -> None:
    tool = Tool(name="f", description="does", parameters={"type": "object"}, strict=True)
    call = ToolCall("c1", "f", "{}")
    chat = Chat(
        messages=(
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="1", tool_call_id="c1", name="f"),
        ),
        tools=(tool,),
        tool_choice=ToolChoice(mode="required", names=("f",), parallel=False),
        reasoning_effort="low",
        template_kwargs={"x": 1},
    )
    generation = request(
        chat,
        sampling=Sampling(temperature=0.0, top_k=5, min_p=0.1, seed=3, repetition_penalty=1.1, logit_bias={7: -100.0}),
        max_tokens=5,
        min_tokens=2,
        ignore_eos=True,
        stop=("a", "b"),
        n=2,
        logprobs=0,
        grammar=Grammar(kind="json_schema", source='{"type": "object"}'),
        prediction="p",
    )
    body = chat_body(generation, chat)
    function = {"name": "f", "description": "does", "parameters": {"type": "object"}, "strict": True}
    assert body["messages"] == [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "1", "name": "f", "tool_call_id": "c1"},
    ]
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert body["parallel_tool_calls"] is False
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert body["prediction"] == {"type": "content", "content": "p"}
    expected = {"temperature": 0.0, "top_k": 5, "min_p": 0.1, "seed": 3, "repetition_penalty": 1.1, "n": 2}
    expected |= {"max_tokens": 5, "min_tokens": 2, "ignore_eos": True, "stop": ["a", "b"], "logprobs": True}
    expected |= {"logit_bias": {7: -100.0}, "reasoning_effort": "low", "chat_template_kwargs": {"x": 1}}
    assert {name: body[name] for name in expected} == expected
    assert "top_logprobs" not in body and "presence_penalty" not in body


def test_tool_choice_of_chat_body() -> None:
    def choice(**fields: Any) -> Any:
        chat = Chat(messages=CHAT.messages, tools=(Tool(name="f"),), tool_choice=ToolChoice(**fields))
        return chat_body(request(chat), chat)["tool_choice"]

    assert [choice(mode=mode) for mode in ("auto", "none", "required")] == ["auto", "none", "required"]
    allowed = choice(mode="auto", names=("f", "g"))
    assert (allowed["type"], allowed["allowed_tools"]["mode"]) == ("allowed_tools", "auto")


def test_parameter_without_api_field_is_refused() -> None:
    with pytest.raises(UnsupportedParameter, match="regex"):
        chat_body(request(grammar=Grammar(kind="regex", source="a")), CHAT)
    assert chat_body(request(grammar=Grammar(kind="json_object")), CHAT)["response_format"] == {"type": "json_object"}
    with pytest.raises(UnsupportedParameter):
        completion_body(request(Text("a"), grammar=Grammar(kind="json_object")), Text("a"))
    with pytest.raises(UnsupportedParameter):
        completion_body(request(Text("a"), prompt_logprobs=True), Text("a"))
