"""A chat request becomes a Generation: defaults applied, contradictions refused."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config.tables import Defaults
from gateway.errors import InvalidRequest
from gateway.generation import UNLIMITED, Chat, Generation, Grammar, Message, Tool, ToolCall, ToolChoice
from gateway.routes.openai_api.parse_chat import chat_generation
from gateway.routes.openai_api.wire import ChatRequest
from gateway.server.body import parse
from tests.support.json_values import JSON_VALUES

decoder = msgspec.json.Decoder(ChatRequest)
NO_CHANGES = Defaults()
HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def generation(defaults: Defaults = NO_CHANGES, **fields: Any) -> Generation:
    body = msgspec.json.encode({"model": "m", "messages": HELLO, **fields})
    return chat_generation(parse(body, decoder), defaults, id="chatcmpl-1")


def chat(**fields: Any) -> Chat:
    prompt = generation(**fields).prompt
    assert isinstance(prompt, Chat)
    return prompt


def refusal(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        generation(**fields)
    return caught.value


# ---- limits and sampling


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_zero_tokens_is_refused_and_minus_one_is_no_limit(name: str) -> None:
    assert refusal(**{name: 0}).param == name
    made = generation(**{name: -1})
    assert (made.max_tokens, made.has_default_limit) == (UNLIMITED, False)


def test_limit_of_the_config_is_known_as_the_default() -> None:
    made, sent = generation(Defaults(max_tokens="context")), generation(Defaults(max_tokens="context"), max_tokens=5)
    assert (made.max_tokens, made.has_default_limit) == (UNLIMITED, True)
    assert (sent.max_tokens, sent.has_default_limit) == (5, False)


@pytest.mark.parametrize(
    ("stop", "strings"),
    [
        ("", ()),
        ([""], ()),
        (["", "a", ""], ("a",)),
        (["a"] * 64, ("a",)),
        ([f"stop {index}" for index in range(64)], tuple(f"stop {index}" for index in range(64))),
        (None, ()),
        ([], ()),
    ],
)
def test_up_to_64_stop_strings_without_empty_and_equal_ones(stop: Any, strings: tuple[str, ...]) -> None:
    assert generation(stop=stop).stop == strings


def test_defaults_come_from_the_model() -> None:
    made = generation(Defaults(max_tokens=99, temperature=0.5, top_p=0.9, top_k=40, min_p=0.1, repetition_penalty=1.1))
    assert (made.max_tokens, made.n, made.stop, made.logprobs) == (99, 1, (), None)
    sampling = made.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert (sampling.min_p, sampling.repetition_penalty, sampling.seed) == (0.1, 1.1, None)


def test_zero_is_not_treated_as_absent() -> None:
    made = generation(Defaults(temperature=0.5, top_k=40, top_p=0.9), temperature=0, top_k=0, top_p=0, seed=0)
    assert (made.sampling.temperature, made.sampling.top_k, made.sampling.top_p, made.sampling.seed) == (0, 0, 0, 0)


def test_default_limit_is_64_tokens() -> None:
    assert generation().max_tokens == 64


def test_max_completion_tokens_overrides_max_tokens() -> None:
    assert generation(max_tokens=5).max_tokens == 5
    assert generation(max_completion_tokens=7).max_tokens == 7
    assert generation(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert generation(max_tokens=5, max_completion_tokens=None).max_tokens == 5


def test_vllm_and_llama_cpp_fields_are_read() -> None:
    made = generation(top_k=40, min_p=0.05, repetition_penalty=1.2, min_tokens=3, ignore_eos=True)
    assert (made.sampling.top_k, made.sampling.min_p, made.sampling.repetition_penalty) == (40, 0.05, 1.2)
    assert (made.min_tokens, made.ignore_eos) == (3, True)
    assert generation(Defaults(top_k=40), top_k=-1).sampling.top_k == 0


def test_min_tokens_over_the_limit_is_refused() -> None:
    assert refusal(min_tokens=9, max_tokens=8).param == "min_tokens"


def test_stop_may_be_a_string_or_a_list() -> None:
    assert generation(stop="END").stop == ("END",)
    assert generation(stop=["a", "b"]).stop == ("a", "b")
    assert generation(stop=[]).stop == ()


def test_logit_bias_has_token_ids_as_keys() -> None:
    assert generation(logit_bias={"42": -100, "7": 3.5}).sampling.logit_bias == {42: -100.0, 7: 3.5}


def test_logprobs_and_top_logprobs_are_combined() -> None:
    assert generation(logprobs=True).logprobs == 0
    assert generation(logprobs=True, top_logprobs=5).logprobs == 5
    assert generation(logprobs=False, top_logprobs=0).logprobs is None
    assert refusal(top_logprobs=5).param == "top_logprobs"
    assert refusal(top_logprobs=5, logprobs=False).param == "top_logprobs"


def test_service_tier_flex_is_background() -> None:
    assert generation(service_tier="flex").background
    assert not generation(service_tier="auto").background


def test_prediction_may_be_text_or_parts() -> None:
    assert generation(prediction={"type": "content", "content": "x = 1\n"}).prediction == "x = 1\n"
    parts = [{"type": "text", "text": "x = 1"}, {"type": "text", "text": "y = 2"}]
    assert generation(prediction={"type": "content", "content": parts}).prediction == "x = 1\ny = 2"


def test_stream_options_need_stream() -> None:
    generation(stream=True, stream_options={"include_usage": True})
    generation(stream=True, stream_options={})
    assert refusal(stream_options={"include_usage": True}).param == "stream_options"
    assert refusal(stream=False, stream_options={}).param == "stream_options"


def test_modalities_other_than_text_are_refused() -> None:
    generation(modalities=["text"])
    assert refusal(modalities=["text", "audio"]).param == "modalities"


# ---- messages


def test_developer_role_becomes_system() -> None:
    messages = [{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}, *HELLO]
    assert [message.role for message in chat(messages=messages).messages] == ["system", "system", "user"]


@pytest.mark.parametrize("role", ["system", "developer", "user"])
def test_one_text_part_equals_the_string(role: str) -> None:
    parts = chat(messages=[{"role": role, "content": [{"type": "text", "text": "Hello"}]}])
    assert parts == chat(messages=[{"role": role, "content": "Hello"}])


def test_text_parts_are_joined_in_order() -> None:
    parts = [{"type": "text", "text": text} for text in ("one", "two", "three")]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].content == "one\ntwo\nthree"


def test_texts_among_the_parts_are_parts() -> None:
    made = chat(messages=[{"role": "user", "content": ["a", {"type": "text", "text": "b"}, "c"]}])
    assert made.messages[0].content == "a\nb\nc"


def test_empty_content_is_kept() -> None:
    assert chat(messages=[{"role": "user", "content": ""}]).messages[0].content == ""


@pytest.mark.parametrize("content", [{"content": None}, {"content": ""}, {}])
def test_assistant_message_with_only_tool_calls_needs_no_content(content: dict[str, Any]) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    message = chat(messages=[*HELLO, {"role": "assistant", "tool_calls": [call], **content}]).messages[1]
    assert message.tool_calls == (ToolCall("call_1", "weather", '{"city": "Rome"}'),)
    assert not message.content


def test_tool_result_needs_its_call_id() -> None:
    for content in ("warm", [{"type": "text", "text": "warm"}]):
        made = chat(messages=[*HELLO, {"role": "tool", "tool_call_id": "call_1", "content": content}])
        assert made.messages[1] == Message(role="tool", content="warm", tool_call_id="call_1")
    assert refusal(messages=[{"role": "tool", "content": "warm"}]).param == "messages.0.tool_call_id"


def test_result_without_an_id_is_that_of_the_first_call_without_a_result() -> None:
    calls = [{"function": {"name": name, "arguments": {"city": "Rome"}}} for name in ("weather", "clock")]
    calls += [{"id": "own", "function": {"name": "weather", "arguments": "{}"}}]
    results = [{"role": "tool", "tool_call_id": "own"}, {"role": "tool", "content": None}, {"role": "tool"}]
    made = chat(messages=[*HELLO, {"role": "assistant", "tool_calls": calls}, *results]).messages
    assert made[1].tool_calls[1] == ToolCall("call_1_1", "clock", '{"city":"Rome"}')
    assert [message.tool_call_id for message in made[2:]] == ["own", "call_1_0", "call_1_1"]
    assert [message.content for message in made[2:]] == ["", "", ""]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_name_and_reasoning_are_kept(key: str) -> None:
    message = {"role": "assistant", "content": "4", "name": "bo", key: "2 and 2"}
    assert chat(messages=[message]).messages[0] == Message(
        role="assistant", content="4", name="bo", reasoning="2 and 2"
    )
    assert (
        chat(messages=[{"role": "assistant", "content": "4", "reasoning": {"effort": 1}}]).messages[0].reasoning is None
    )


def test_user_without_content_is_refused() -> None:
    assert refusal(messages=[{"role": "user"}]).param == "messages.0.content"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "file", "file": {"file_id": "f"}},
        {"type": "hologram"},
    ],
)
def test_part_that_is_not_text_is_refused_with_its_path(part: dict[str, Any]) -> None:
    messages = [*HELLO, {"role": "user", "content": [{"type": "text", "text": "look"}, part]}]
    error = refusal(messages=messages)
    assert error.param == "messages.1.content.1"
    assert part["type"] in error.message


def test_text_part_without_text_is_refused() -> None:
    assert refusal(messages=[{"role": "user", "content": [{"type": "text"}]}]).param == "messages.0.content.0.text"


# ---- tools


def test_tools_become_engine_tools() -> None:
    made = chat(tools=[WEATHER, CLOCK])
    parameters = WEATHER["function"]["parameters"]  # type: ignore[index]
    assert made.tools[0] == Tool(name="weather", description="of a city", parameters=parameters, strict=True)
    assert made.tools[1] == Tool(name="clock")
    assert made.tool_choice == ToolChoice(mode="auto")


def test_tool_in_the_flat_form_of_the_responses_api_is_the_same() -> None:
    flat = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]
    assert chat(tools=[flat]).tools == chat(tools=[WEATHER]).tools


@pytest.mark.parametrize("name", ["files.read", "mcp:files/read", "f" * 128])
def test_tool_of_an_mcp_server_keeps_its_name(name: str) -> None:
    assert chat(tools=[{"function": {"name": name}}]).tools == (Tool(name=name),)


def test_tool_choice_is_none_without_tools() -> None:
    assert chat().tool_choice.mode == "none"
    assert chat(tools=[]).tool_choice.mode == "none"
    assert chat(tools=[], tool_choice="auto").tool_choice.mode == "none"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", ToolChoice(mode="none")),
        ("auto", ToolChoice(mode="auto")),
        (None, ToolChoice(mode="auto")),
        ("required", ToolChoice(mode="required")),
        ({"type": "function", "function": {"name": "clock"}}, ToolChoice(mode="required", names=("clock",))),
        # forms of other APIs
        ("any", ToolChoice(mode="required")),
        ({"type": "auto"}, ToolChoice(mode="auto")),
        ({"type": "none"}, ToolChoice(mode="none")),
        ({"type": "any"}, ToolChoice(mode="required")),
        ({"type": "function", "name": "clock"}, ToolChoice(mode="required", names=("clock",))),
        ({"type": "tool", "name": "clock"}, ToolChoice(mode="required", names=("clock",))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CLOCK]}},
            ToolChoice(mode="auto", names=("clock",)),
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CLOCK, WEATHER]}},
            ToolChoice(mode="required", names=("clock", "weather")),
        ),
    ],
)
def test_tool_choice_forms(choice: Any, expected: ToolChoice) -> None:
    assert chat(tools=[WEATHER, CLOCK], tool_choice=choice).tool_choice == expected


def test_parallel_tool_calls_is_true_by_default() -> None:
    assert not chat(tools=[WEATHER], parallel_tool_calls=False).tool_choice.parallel
    assert chat(tools=[WEATHER], parallel_tool_calls=None).tool_choice.parallel


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "clock"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "clock"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools.0.function.parameters",
        ),
    ],
)
def test_invalid_tools_and_tool_choices_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(100):
        schema = {"type": "object", "properties": {"a": schema}}
    function = {"name": "f", "parameters": schema}
    assert refusal(tools=[{"type": "function", "function": function}]).param == "tools.0.function.parameters"
    format_ = {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}
    assert refusal(response_format=format_).param == "response_format.json_schema.schema"
    assert refusal(chat_template_kwargs=schema).param == "chat_template_kwargs"


# ---- grammar


def schema_of(grammar: Grammar | None) -> Any:
    assert grammar is not None and grammar.kind == "json_schema"
    return msgspec.json.decode(grammar.source)


def test_response_format_becomes_a_grammar() -> None:
    assert generation(response_format={"type": "text"}).grammar is None
    assert generation(response_format={"type": "json_object"}).grammar == Grammar(kind="json_object")
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    assert schema_of(generation(response_format=format_).grammar) == SCHEMA
    assert schema_of(generation(response_format={"type": "json_object", "schema": SCHEMA}).grammar) == SCHEMA


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"guided_regex": r"\d+"}, Grammar(kind="regex", source=r"\d+", param="guided_regex")),
        (
            {"structured_outputs": {"regex": r"\d+"}},
            Grammar(kind="regex", source=r"\d+", param="structured_outputs.regex"),
        ),
        ({"guided_grammar": 'start: "a"'}, Grammar(kind="lark", source='start: "a"', param="guided_grammar")),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            Grammar(kind="lark", source='start: "a"', param="structured_outputs.grammar"),
        ),
        ({"grammar": 'start: "a"'}, Grammar(kind="lark", source='start: "a"', param="grammar")),
        (
            {"guided_choice": ["yes", 'n"o']},
            Grammar(kind="lark", source='start: "yes" | "n\\"o"', param="guided_choice"),
        ),
        (
            {"structured_outputs": {"choice": ["yes"]}},
            Grammar(kind="lark", source='start: "yes"', param="structured_outputs.choice"),
        ),
        (
            {"structured_outputs": {"json_object": True}},
            Grammar(kind="json_object", param="structured_outputs.json_object"),
        ),
        ({"grammar": "", "guided_regex": "", "guided_json": ""}, None),
        ({"structured_outputs": {}}, None),
    ],
)
def test_vllm_and_llama_cpp_grammars_are_read(fields: dict[str, Any], expected: Grammar | None) -> None:
    assert generation(**fields).grammar == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"guided_json": SCHEMA},
        {"guided_json": msgspec.json.encode(SCHEMA).decode()},
        {"structured_outputs": {"json": SCHEMA}},
        {"json_schema": SCHEMA},
    ],
)
def test_vllm_and_llama_cpp_schemas_are_read(fields: dict[str, Any]) -> None:
    assert schema_of(generation(**fields).grammar) == SCHEMA


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": 5}}},
            "response_format.json_schema.schema",
        ),
        ({"guided_json": "{not json"}, "guided_json"),
        ({"guided_json": "[1]"}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)
def test_invalid_formats_are_refused(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_template_variables_and_reasoning_effort_are_read() -> None:
    made = chat(chat_template_kwargs={"enable_thinking": False}, reasoning_effort="low")
    assert made.template_kwargs == {"enable_thinking": False}
    assert made.reasoning_effort == "low"


# ---- any JSON

FIELDS = [field.name for field in msgspec.structs.fields(ChatRequest)]
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "refusal", "image_url"])}, optional={"text": JSON_VALUES}
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["developer", "system", "user", "assistant", "tool"])},
    optional={"content": st.text() | st.lists(PART | JSON_VALUES, max_size=3), "tool_call_id": JSON_VALUES},
)


@settings(max_examples=400, deadline=None)
@given(st.lists(MESSAGE, max_size=3), st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=4))
def test_any_json_gives_a_generation_or_invalid_request(messages: list[Any], fields: dict[str, Any]) -> None:
    body = json.dumps({"messages": messages, **fields}).encode()
    try:
        made = chat_generation(parse(body, decoder), NO_CHANGES, id="chatcmpl-1")
    except InvalidRequest as error:
        assert error.message
    else:
        assert made.max_tokens >= 1


# ---- the older form of tools

WEATHER_FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        (None, ToolChoice(mode="auto", parallel=False)),
        ("auto", ToolChoice(mode="auto", parallel=False)),
        ("none", ToolChoice(mode="none", parallel=False)),
        ({"name": "weather"}, ToolChoice(mode="required", names=("weather",), parallel=False)),
    ],
)
def test_functions_are_tools_and_function_call_is_the_choice(choice: Any, found: ToolChoice) -> None:
    made = chat(functions=[WEATHER_FUNCTION, {"name": "clock"}], function_call=choice)
    assert [tool.name for tool in made.tools] == ["weather", "clock"]
    assert made.tools[0].parameters == WEATHER_FUNCTION["parameters"]
    assert made.tool_choice == found


def test_function_call_none_without_functions_is_accepted() -> None:
    assert chat(function_call="none").tool_choice.mode == "none"
    assert refusal(function_call={"name": "weather"}).param == "tool_choice"
    assert refusal(functions=[WEATHER_FUNCTION], function_call={"name": "clock"}).param == "tool_choice"
    assert refusal(functions=[{"name": "f", "parameters": {"type": "string"}}]).param == "functions.0.parameters"


def test_older_call_and_its_result_become_a_call_and_a_tool_message() -> None:
    call = {"name": "weather", "arguments": '{"city": "Paris"}'}
    messages = chat(
        messages=[
            *HELLO,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "weather", "content": "Rain."},
            {"role": "assistant", "content": "Again.", "function_call": {"name": "clock"}},
            {"role": "function", "name": "clock", "content": None},
        ]
    ).messages
    assert messages[1] == Message(role="assistant", tool_calls=(ToolCall("call_1", "weather", call["arguments"]),))
    assert messages[2] == Message(role="tool", content="Rain.", name="weather", tool_call_id="call_1")
    assert messages[3].tool_calls == (ToolCall("call_3", "clock", "{}"),)
    assert messages[4] == Message(role="tool", content="", name="clock", tool_call_id="call_3")


def test_half_of_a_surrogate_pair_in_arguments_becomes_the_replacement_character() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": r'{"a": "\ud83d", "b": "\\ud83d"}'}}
    [made] = chat(messages=[{"role": "assistant", "tool_calls": [call]}, *HELLO]).messages[0].tool_calls
    assert json.loads(made.arguments) == {"a": "\ufffd", "b": r"\ud83d"}


def test_custom_call_of_the_history_is_kept() -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "x"}}
    made = chat(messages=[*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}, *HELLO])
    assert made.messages[1].tool_calls == (ToolCall("c", "patch", '{"input":"x"}'),)
    assert refusal(messages=[{"role": "assistant", "tool_calls": [{"id": "c"}]}]).param == (
        "messages.0.tool_calls.0.function"
    )


def test_earlier_image_becomes_a_short_text() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    earlier = {"role": "user", "content": [{"type": "text", "text": "Look"}, image]}
    assert chat(messages=[earlier, *HELLO]).messages[0].content == (
        "Look\n[image_url omitted: the model reads only text]"
    )
    odd = {"role": "user", "content": [{"type": "<|im_end|>"}]}
    assert chat(messages=[odd, *HELLO]).messages[0].content == "[content omitted: the model reads only text]"
