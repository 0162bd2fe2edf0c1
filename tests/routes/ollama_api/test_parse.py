"""A request of Ollama's API becomes a Generation."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.generation import (
    UNLIMITED,
    Chat,
    Generation,
    Message,
    Text,
    ToolCall,
)
from gateway.routes.ollama_api.wire import OllamaChatRequest, OllamaGenerateRequest, Options
from tests.routes.ollama_api.helpers import FRANCE, QUESTION, chat_generation, generate_generation
from tests.support.json_values import JSON_VALUES

TOOL: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "d", "parameters": {"type": "object", "properties": {}}},
}


def test_options_become_sampling() -> None:
    generation = chat_generation(
        options={
            "num_predict": 5, "temperature": 0.3, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7, "stop": "x",
            "repeat_penalty": 1.1, "presence_penalty": 0.2, "frequency_penalty": 0.4, "num_ctx": 4096, "num_gpu": 1,
        }
    )  # fmt: skip
    sampling = generation.sampling
    assert (generation.max_tokens, generation.stop) == (5, ("x",))
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.3, 0.9, 40, 0.1)
    assert (sampling.seed, sampling.repetition_penalty) == (7, 1.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.2, 0.4)


@pytest.mark.parametrize(("num_predict", "limit"), [(None, 64), (-1, UNLIMITED), (-2, UNLIMITED), (9, 9)])
def test_num_predict_sets_the_limit(num_predict: int | None, limit: int) -> None:
    assert chat_generation(options={"num_predict": num_predict}).max_tokens == limit


@pytest.mark.parametrize(("format", "kind"), [("", None), (None, None), ("json", "json_object"), ({}, "json_schema")])
def test_format_becomes_a_grammar(format: Any, kind: str | None) -> None:
    grammar = chat_generation(format=format).grammar
    assert (grammar and grammar.kind) == kind


@pytest.mark.parametrize(("think", "effort"), [(None, None), (False, "none"), (True, "medium"), ("high", "high")])
def test_think_sets_the_reasoning_effort(think: Any, effort: str | None) -> None:
    for generation in (chat_generation(think=think), generate_generation(think=think)):
        assert isinstance(generation.prompt, Chat) and generation.prompt.reasoning_effort == effort


def test_tool_results_match_calls_without_ids() -> None:
    calls = [{"function": {"name": name, "arguments": {"x": 1}}} for name in ("weather", "clock")]
    prompt = chat_generation(
        messages=[
            *FRANCE,
            {"role": "assistant", "content": "", "thinking": "Hm", "tool_calls": calls},
            {"role": "tool", "content": "Rain.", "tool_name": "weather"},
            {"role": "tool", "content": "Noon.", "tool_name": "clock"},
        ],
        tools=[TOOL],
    ).prompt
    assert isinstance(prompt, Chat) and prompt.tool_choice.mode == "auto"
    first, second = ToolCall("call_1_0", "weather", '{"x":1}'), ToolCall("call_1_1", "clock", '{"x":1}')
    assert prompt.messages[1:] == (
        Message(role="assistant", reasoning="Hm", tool_calls=(first, second)),
        Message(role="tool", content="Rain.", name="weather", tool_call_id="call_1_0"),
        Message(role="tool", content="Noon.", name="clock", tool_call_id="call_1_1"),
    )


def test_generate_prompt_forms() -> None:
    assert generate_generation(raw=True).prompt == Text(QUESTION)
    assert generate_generation(suffix="}").prompt == Text(QUESTION, "}")
    chat = generate_generation(system="Be brief.").prompt
    assert isinstance(chat, Chat) and [message.role for message in chat.messages] == ["system", "user"]


OPTIONS = st.dictionaries(st.sampled_from([*Options.__struct_fields__, "num_ctx"]), JSON_VALUES, max_size=3)
FIELDS = st.dictionaries(
    st.sampled_from([*OllamaChatRequest.__struct_fields__, *OllamaGenerateRequest.__struct_fields__]),
    JSON_VALUES,
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(FIELDS, OPTIONS)
def test_any_json_gives_a_generation_or_invalid_request(fields: Any, options: Any) -> None:
    for parse_request in (chat_generation, generate_generation):
        with suppress(InvalidRequest):
            assert isinstance(parse_request(**{"options": options, **fields}), Generation)
