"""Tool calls of SmolLM2 and of scripted models, through the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openai import BadRequestError, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageToolCall

from gateway.config.tables import Script, ScriptedModel
from tests.support.server import Running, config_of, serving
from tests.support.structured import SCHEMAS, closed, faults

WEATHER = closed(city={"type": "string", "maxLength": 30}, unit={"enum": ["celsius", "fahrenheit"]})
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris, in celsius?"}]

#: One function for each schema; the parameters of a function must be an object.
PARAMETERS = {
    name: schema if schema.get("type") == "object" else closed(value=schema)
    for name, schema in SCHEMAS.items()
    if "$defs" not in schema or schema.get("type") == "object"
} | {name: schema | {"type": "object"} for name, schema in SCHEMAS.items() if "$defs" in schema}


def tool(name: str, parameters: Any = None, **fields: Any) -> Any:
    function = {"name": name, "description": f"About {name}.", **fields}
    return {"type": "function", "function": function | ({"parameters": parameters} if parameters else {})}


TOOLS = [tool("get_weather", WEATHER), tool("get_time")]
DEFAULTS: Any = {"messages": QUESTION, "tools": TOOLS, "temperature": 1, "seed": 1, "max_tokens": 200}
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def openai(local: Running) -> Iterator[OpenAI]:
    with local.openai(timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def whole(openai: OpenAI) -> ChatCompletion:
    return ask(openai, tool_choice=NAMED)


def ask(openai: OpenAI, **fields: Any) -> ChatCompletion:
    answer: ChatCompletion = openai.chat.completions.create(**({"model": "smollm2"} | DEFAULTS | fields))
    return answer


def streamed(openai: OpenAI, **fields: Any) -> Any:
    return list(openai.chat.completions.create(model="smollm2", stream=True, **(DEFAULTS | fields)))


def calls_of(answer: ChatCompletion) -> list[ChatCompletionMessageToolCall]:
    calls = answer.choices[0].message.tool_calls or []
    assert all(isinstance(call, ChatCompletionMessageToolCall) for call in calls)
    return calls  # type: ignore[return-value]


def check_weather(call: ChatCompletionMessageToolCall) -> None:
    assert call.type == "function" and call.id
    assert call.function.name in ("get_weather", "get_time")
    if call.function.name == "get_weather":
        assert not faults(WEATHER, call.function.arguments)
    else:
        assert json.loads(call.function.arguments) == {}


def test_named_function_is_called_once_without_text(openai: OpenAI) -> None:
    for seed in (1, 2):
        answer = ask(openai, tool_choice=NAMED, seed=seed)
        (call,) = calls_of(answer)
        assert call.function.name == "get_weather"
        check_weather(call)
        assert not answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "tool_calls"


def test_required_gives_calls_and_only_one_if_not_parallel(openai: OpenAI) -> None:
    answer = ask(openai, tool_choice="required", parallel_tool_calls=False)
    (call,) = calls_of(answer)
    check_weather(call)
    assert answer.choices[0].finish_reason == "tool_calls"
    parallel = ask(openai, tool_choice="required", max_tokens=100)
    assert calls_of(parallel)
    if parallel.choices[0].finish_reason == "tool_calls":
        for call in calls_of(parallel):
            check_weather(call)
    assert len({call.id for call in calls_of(parallel)}) == len(calls_of(parallel))


@pytest.mark.parametrize("stream", [False, True])
def test_required_calls_end_when_the_model_begins_text(openai: OpenAI, stream: bool) -> None:
    """Without the text behind the calls in the grammar, SmolLM2 repeats its call until `max_tokens`."""
    fields: Any = {"tool_choice": "required", "temperature": 0}
    if stream:
        chunks = streamed(openai, **fields)
        pieces = [chunk.choices[0].delta.tool_calls for chunk in chunks if chunk.choices[0].delta.tool_calls]
        names = [piece[0].function.name for piece in pieces if piece[0].id]
        assert chunks[-1].choices[0].finish_reason == "tool_calls"
    else:
        answer = ask(openai, **fields)
        names = [call.function.name for call in calls_of(answer)]
        assert answer.choices[0].finish_reason == "tool_calls" and answer.usage
        assert answer.usage.completion_tokens < 50
    assert names == ["get_weather"]


def test_allowed_tools_excludes_other_tools(openai: OpenAI) -> None:
    allowed: Any = {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}
    answer = ask(openai, tool_choice={"type": "allowed_tools", "allowed_tools": allowed})
    assert {call.function.name for call in calls_of(answer)} == {"get_time"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_arguments_match_their_schema(tiny_openai: OpenAI, name: str) -> None:
    """The tiny model has no training: it writes anything that the schema does not exclude."""
    parameters = PARAMETERS[name]
    Draft202012Validator.check_schema(parameters)
    answer = ask(
        tiny_openai,
        model="tiny",
        messages=[{"role": "user", "content": f"Make a {name}."}],
        tools=[tool("make", parameters)],
        tool_choice={"type": "function", "function": {"name": "make"}},
        max_tokens=160,
    )
    (call,) = calls_of(answer)
    assert call.function.name == "make"
    if answer.choices[0].finish_reason != "length":
        assert answer.choices[0].finish_reason == "tool_calls"
        assert faults(parameters, call.function.arguments) == []


def test_streamed_call_sends_name_then_arguments(openai: OpenAI, whole: ChatCompletion) -> None:
    chunks = streamed(openai, tool_choice=NAMED, stream_options={"include_usage": True})
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    first, *pieces = [choice.delta.tool_calls[0] for choice in choices if choice.delta.tool_calls]
    assert (first.index, first.type, first.function.name, first.function.arguments) == (
        0,
        "function",
        "get_weather",
        "",
    )
    assert first.id
    assert len(pieces) > 3
    assert all(piece.index == 0 and piece.id is None and piece.function.name is None for piece in pieces)
    assert "".join(piece.function.arguments for piece in pieces) == calls_of(whole)[0].function.arguments
    assert not any(choice.delta.content for choice in choices)
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]
    assert chunks[-1].usage and whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_sdk_stream_helper_joins_the_call(openai: OpenAI) -> None:
    with openai.chat.completions.stream(
        model="smollm2", messages=QUESTION, tools=TOOLS, tool_choice=NAMED, max_tokens=200
    ) as stream:
        for _ in stream:
            pass  # the SDK joins the pieces; its result is compared below
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or []
    assert call.function.name == "get_weather" and not faults(WEATHER, call.function.arguments)


def test_tool_result_reaches_the_model(openai: OpenAI, whole: ChatCompletion) -> None:
    (call,) = calls_of(whole)
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "It rains. 7 degrees."}]},
    ]
    answer = ask(openai, messages=messages, temperature=0, tool_choice="none", max_tokens=16)
    assert answer.choices[0].message.content and not answer.choices[0].message.tool_calls
    without = ask(openai, messages=messages[:2], temperature=0, tool_choice="none", max_tokens=1)
    assert answer.usage and without.usage and answer.usage.prompt_tokens > without.usage.prompt_tokens
    assert ask(openai, messages=messages, tool_choice="auto", max_tokens=16).choices[0].finish_reason


def test_tool_choice_none_gives_no_call(openai: OpenAI) -> None:
    answer = ask(openai, tool_choice="none", max_tokens=24)
    assert answer.choices[0].message.content and answer.choices[0].message.tool_calls is None
    assert answer.usage and answer.usage.prompt_tokens == ask(openai, tools=None, max_tokens=1).usage.prompt_tokens  # type: ignore[union-attr]


@pytest.mark.parametrize("limit", [1, 3, 24, 28])
@pytest.mark.parametrize("stream", [False, True])
def test_token_limit_inside_a_call_gives_length_reason(
    openai: OpenAI, whole: ChatCompletion, limit: int, stream: bool
) -> None:
    """A limit before the name gives no call; a later one cuts the arguments."""
    fields: Any = {"tool_choice": NAMED, "max_tokens": limit}
    complete = calls_of(whole)[0].function.arguments
    if stream:
        choices = [chunk.choices[0] for chunk in streamed(openai, **fields)]
        pieces = [choice.delta.tool_calls[0] for choice in choices if choice.delta.tool_calls]
        content = "".join(choice.delta.content or "" for choice in choices)
        names = [piece.function.name for piece in pieces if piece.function.name]
        arguments = "".join(piece.function.arguments or "" for piece in pieces)
        reason = choices[-1].finish_reason
    else:
        answer = ask(openai, **fields)
        content, reason = answer.choices[0].message.content or "", answer.choices[0].finish_reason
        names = [call.function.name for call in calls_of(answer)]
        arguments = "".join(call.function.arguments for call in calls_of(answer))
        assert answer.usage and answer.usage.completion_tokens == limit
    assert reason == "length" and content == ""
    assert names == ([] if limit < 24 else ["get_weather"])
    assert complete.startswith(arguments) and arguments != complete


def test_each_choice_has_its_own_call(openai: OpenAI) -> None:
    answer = ask(openai, tool_choice=NAMED, n=3)
    assert len(answer.choices) == 3
    ids = set()
    for choice in answer.choices:
        (call,) = choice.message.tool_calls or []
        check_weather(call)  # type: ignore[arg-type]
        ids.add(call.id)
    assert len(ids) == 3


def test_auto_with_strict_tool_gives_text_or_valid_calls(openai: OpenAI) -> None:
    strict = [tool("get_weather", WEATHER, strict=True)]
    answer = ask(openai, tools=strict, max_tokens=48)
    message, reason = answer.choices[0].message, answer.choices[0].finish_reason
    assert message.content or message.tool_calls or reason == "length"
    if reason == "tool_calls":
        for call in calls_of(answer):
            check_weather(call)


def test_required_call_overrides_response_format(openai: OpenAI) -> None:
    (call,) = calls_of(ask(openai, tool_choice=NAMED, response_format={"type": "json_object"}))
    check_weather(call)


def test_unsupported_tool_schema_is_400(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="hiccup") as refused:
        ask(openai, tools=[tool("f", closed(a={"type": "hiccup"}))], tool_choice="required")
    assert refused.value.param == "tools"


def test_tool_call_has_logprobs(openai: OpenAI) -> None:
    answer = ask(openai, tool_choice=NAMED, logprobs=True)
    assert answer.usage and answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert len(answer.choices[0].logprobs.content) == answer.usage.completion_tokens


# A model that is trained for tools and reasoning is scripted: SmolLM2 is not.

WRITTEN = (
    "<think>\nI need it.\n</think>\n\nLet me see.\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def trained() -> Iterator[OpenAI]:
    model = ScriptedModel(dialect="qwen", script=Script(replies=(WRITTEN,)))
    with serving(config_of({"trained": model})) as running, running.openai() as client:
        yield client


def test_auto_separates_reasoning_text_and_calls(trained: OpenAI) -> None:
    answer = trained.chat.completions.create(model="trained", messages=QUESTION, tools=TOOLS, max_tokens=500)
    (choice,) = answer.choices
    (call,) = calls_of(answer)
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content or "").strip() == "Let me see."
    assert choice.message.model_extra and choice.message.model_extra["reasoning_content"].strip() == "I need it."
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')


def test_auto_streams_reasoning_then_text_then_calls(trained: OpenAI) -> None:
    fields: Any = {"messages": QUESTION, "tools": TOOLS, "max_tokens": 500, "stream": True}
    deltas = [chunk.choices[0].delta for chunk in trained.chat.completions.create(model="trained", **fields)]
    kinds = [
        "reasoning" if (delta.model_extra or {}).get("reasoning_content") else "content" if delta.content else "call"
        for delta in deltas
        if delta.content or delta.tool_calls or (delta.model_extra or {}).get("reasoning_content")
    ]
    assert kinds == sorted(kinds, key=["reasoning", "content", "call"].index) and len(set(kinds)) == 3
    assert "".join(delta.content or "" for delta in deltas).strip() == "Let me see."
    pieces = [delta.tool_calls[0].function for delta in deltas if delta.tool_calls]
    assert "".join(piece.arguments or "" for piece in pieces if piece) == '{"city": "Paris"}'


def test_call_markup_without_tools_is_content(trained: OpenAI) -> None:
    answer = trained.chat.completions.create(model="trained", messages=QUESTION, max_tokens=500)
    assert not answer.choices[0].message.tool_calls
    assert "<tool_call>" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"


CITY = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


def test_request_with_functions_gets_the_call_in_both_forms(trained: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Weather in Paris?"}]
    [choice] = trained.chat.completions.create(model="trained", messages=messages, functions=[CITY]).choices  # type: ignore[call-overload]
    assert choice.finish_reason == "function_call"
    assert (choice.message.function_call.name, json.loads(choice.message.function_call.arguments)) == (
        "get_weather",
        {"city": "Paris"},
    )
    assert choice.message.tool_calls[0].function.name == "get_weather"
    pieces = [
        chunk.choices[0]
        for chunk in trained.chat.completions.create(  # type: ignore[call-overload]
            model="trained", messages=messages, functions=[CITY], stream=True
        )
    ]
    calls = [piece.delta.function_call for piece in pieces if piece.delta.function_call]
    assert [call.name for call in calls if call.name] == ["get_weather"]
    assert json.loads("".join(call.arguments or "" for call in calls)) == {"city": "Paris"}
    assert pieces[-1].finish_reason == "function_call"
