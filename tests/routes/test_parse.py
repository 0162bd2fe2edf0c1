"""What each API leaves out of a request, and reports: tools that it cannot run, content that the model cannot read."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec
import pytest

from gateway.routes.anthropic_api.wire import MessagesRequest
from gateway.routes.ollama_api.wire import OllamaChatRequest, OllamaGenerateRequest
from gateway.routes.openai_api.wire import ChatRequest
from gateway.routes.openai_api.wire_completions import CompletionRequest
from gateway.routes.responses_api.wire import ResponsesRequest
from tests.support.server import error_of

HEADER = "x-gateway-ignored"
USER: Any = {"role": "user", "content": "Hi"}
ANSWER: Any = {"role": "assistant", "content": "Hello"}
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
FUNCTION: dict[str, Any] = {
    CHAT: {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}},
    RESPONSES: {"type": "function", "name": "f", "parameters": PARAMETERS},
    MESSAGES: {"name": "f", "input_schema": PARAMETERS},
    "/api/chat": {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}},
}
PROMPT: dict[str, Any] = {
    CHAT: {"messages": [USER]},
    RESPONSES: {"input": [USER]},
    MESSAGES: {"messages": [USER], "max_tokens": 9},
    "/api/chat": {"messages": [USER], "stream": False},
}


def sent(http: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    return http.post(path, json={"model": "paris", **PROMPT[path], **fields})


def ignored(http: httpx.Client, path: str, **fields: Any) -> str | None:
    answer = sent(http, path, **fields)
    assert answer.status_code == 200, answer.text
    return answer.headers.get(HEADER)


class TestTools:
    OTHERS = (
        (RESPONSES, {"type": "web_search"}),
        (RESPONSES, {"type": "web_search_preview", "search_context_size": "low"}),
        (RESPONSES, {"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark"}}),
        (RESPONSES, {"type": "local_shell"}),
        (RESPONSES, {"type": "mcp", "server_label": "x", "server_url": "https://x.example", "headers": {"a": "b"}}),
        (RESPONSES, {"type": "image_generation"}),
        (RESPONSES, {"type": "code_interpreter", "container": {"type": "auto"}}),
        (RESPONSES, {"type": "computer_use_preview", "display_width": 9, "display_height": 9, "environment": "linux"}),
        (RESPONSES, {"type": "file_search", "vector_store_ids": ["a"]}),
        (RESPONSES, {"type": "tool_of_next_year", "name": "x", "anything": [1, {"a": None}]}),
        (CHAT, {"type": "custom", "custom": {"name": "c", "format": {"type": "text"}}}),
        (CHAT, {"type": "web_search"}),
        ("/api/chat", {"type": "browser"}),
        (MESSAGES, {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}),
        (MESSAGES, {"type": "bash_20250124", "name": "bash"}),
        (MESSAGES, {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}),
        (MESSAGES, {"type": "computer_20250124", "name": "computer", "display_width_px": 9, "display_height_px": 9}),
        (MESSAGES, {"type": "mcp_toolset", "mcp_server_name": "x"}),
    )

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(("path", "tool"), OTHERS, ids=str)
    def test_other_tool_is_left_out_and_reported(
        self, http: httpx.Client, path: str, tool: dict[str, Any], stream: bool
    ) -> None:
        assert ignored(http, path, tools=[FUNCTION[path], tool], stream=stream) == f"tools[1] ({tool['type']})"

    @pytest.mark.parametrize(("path", "tool"), OTHERS, ids=str)
    def test_request_with_only_such_a_tool_is_answered(self, http: httpx.Client, path: str, tool: Any) -> None:
        assert ignored(http, path, tools=[tool]) == f"tools[0] ({tool['type']})"

    def test_function_of_a_namespace_stays_and_other_tools_in_it_are_left_out(self, http: httpx.Client) -> None:
        inner = [FUNCTION[RESPONSES], {"type": "custom", "name": "c"}]
        namespaces = [
            {"type": "namespace", "name": "n", "tools": inner},
            {"type": "namespace", "name": "m", "tools": []},
        ]
        assert ignored(http, RESPONSES, tools=namespaces) == "tools[0].tools[1] (custom)"

    @pytest.mark.parametrize(
        ("path", "tool", "choice"),
        [
            (RESPONSES, {"type": "web_search"}, {"type": "web_search"}),
            (RESPONSES, {"type": "custom", "name": "c"}, {"type": "custom", "name": "c"}),
            (RESPONSES, {"type": "mcp", "server_label": "x"}, {"type": "mcp", "server_label": "x"}),
            (
                RESPONSES,
                {"type": "web_search"},
                {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]},
            ),
            (CHAT, {"type": "custom", "custom": {"name": "c"}}, {"type": "custom", "custom": {"name": "c"}}),
            (
                CHAT,
                {"type": "custom", "custom": {"name": "c"}},
                {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "custom", "custom": {"name": "c"}}]},
                },
            ),
            (MESSAGES, {"type": "bash_20250124", "name": "bash"}, {"type": "tool", "name": "bash"}),
        ],
        ids=str,
    )
    def test_choice_of_a_tool_that_is_left_out_is_reported(
        self, http: httpx.Client, path: str, tool: Any, choice: Any
    ) -> None:
        for tools in ([FUNCTION[path], tool], [tool]):
            shown = ignored(http, path, tools=tools, tool_choice=choice)
            assert shown is not None and "tool_choice" in shown and f"tools[{len(tools) - 1}]" in shown

    @pytest.mark.parametrize(
        ("path", "choice"), [(RESPONSES, "required"), (CHAT, "required"), (MESSAGES, {"type": "any"})]
    )
    def test_required_call_without_a_tool_that_is_left_is_not_forced(
        self, http: httpx.Client, path: str, choice: Any
    ) -> None:
        tool = {"type": "web_search_20250305", "name": "w"}
        shown = ignored(http, path, tools=[tool], tool_choice=choice)
        assert shown == "tools[0] (web_search_20250305), tool_choice (its tool is left out)"
        assert sent(http, path, tools=[], tool_choice=choice).status_code == 400  # no tool at all is a mistake

    @pytest.mark.parametrize("choice", ["auto", "none", None])
    def test_empty_list_of_tools_with_a_choice_is_accepted(self, http: httpx.Client, choice: Any) -> None:
        for path in (CHAT, RESPONSES):
            assert ignored(http, path, tools=[], tool_choice=choice, parallel_tool_calls=True) is None


IMAGES: dict[str, Any] = {
    CHAT: {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    RESPONSES: {"type": "input_image", "image_url": "data:image/png;base64,AAAA"},
    MESSAGES: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
}


class TestContent:
    @pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
    def test_image_in_an_earlier_turn_is_left_out_and_in_the_newest_refused(
        self, http: httpx.Client, path: str
    ) -> None:
        name, image = "input" if path == RESPONSES else "messages", IMAGES[path]
        turn = {"role": "user", "content": [image]}
        assert ignored(http, path, **{name: [turn, ANSWER, USER]}) == f"{name}[0].content[0] ({image['type']})"
        refused = sent(http, path, **{name: [USER, ANSWER, turn]})
        assert refused.status_code == 400 and f"{name}.1.content.0".replace("1", "2") in refused.text

    def test_image_of_ollama_in_an_earlier_turn_is_left_out(self, http: httpx.Client) -> None:
        turn = {**USER, "images": ["AAAA"]}
        assert ignored(http, "/api/chat", messages=[turn, ANSWER, USER]) == "messages[0].images (image)"
        assert sent(http, "/api/chat", messages=[USER, ANSWER, turn]).status_code == 400

    @pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "hologram"])
    def test_tool_result_of_any_kind_is_left_out(self, http: httpx.Client, kind: str) -> None:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages = [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": [{"type": kind}]},
        ]
        assert ignored(http, CHAT, messages=messages) == f"messages[2].content[0] ({kind})"


SCHEMA = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "not": {"const": []}}}}


@pytest.mark.parametrize("stream", [False, True])
def test_keywords_that_no_grammar_enforces_are_reported_unless_strict(http: httpx.Client, stream: bool) -> None:
    def response_format(**fields: Any) -> Any:
        return {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, **fields}}

    where = "response_format.json_schema.schema"
    shown = ignored(http, CHAT, response_format=response_format(), stream=stream)
    assert shown == f"{where} (not), {where} (uniqueItems)"
    assert ignored(http, CHAT, response_format=response_format(strict=True), stream=stream) is None
    text = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}
    assert ignored(http, RESPONSES, text=text) == "text.format.schema (not), text.format.schema (uniqueItems)"


@pytest.mark.parametrize("pattern", [r"^(?!x)", r"\bfoo\b", r"^(a)\1$"])
def test_pattern_that_no_grammar_enforces_is_reported(http: httpx.Client, pattern: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    made = {"type": "json_schema", "json_schema": {"schema": schema}}
    assert ignored(http, CHAT, response_format=made) == "response_format.json_schema.schema (pattern)"
    assert ignored(http, "/api/chat", format=schema) == "format (pattern)"


KIND: Any = {"type": "object", "properties": {"kind": {"const": "a"}}}
OTHER_KIND: Any = {"type": "object", "properties": {"kind": {"enum": ["b"]}}}


@pytest.mark.parametrize(
    ("inner", "keyword"),
    [
        ({"oneOf": [{"type": "string"}, {"type": "string", "minLength": 2}]}, "oneOf"),
        ({"oneOf": [KIND, KIND]}, "oneOf"),
        ({"oneOf": [KIND, OTHER_KIND]}, None),
        ({"oneOf": [{"type": "string"}, {"type": "null"}]}, None),
        ({"$ref": "https://a.example/b.json"}, "$ref"),
        ({"type": "string", "format": "regex"}, "format"),
    ],
    ids=str,
)
def test_value_that_no_grammar_enforces_is_reported(http: httpx.Client, inner: Any, keyword: str | None) -> None:
    shown = ignored(http, "/api/chat", format={"type": "object", "properties": {"a": inner}})
    assert shown == (f"format ({keyword})" if keyword else None)


def test_property_with_the_name_of_a_keyword_is_no_keyword(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"not": {"type": "string"}, "if": {"enum": [{"not": 1}]}}}
    names = {"type": "object", "propertyNames": {"type": "string"}, "uniqueItems": False}
    for each in (schema, names):
        made = {"type": "json_schema", "json_schema": {"name": "n", "schema": each}}
        assert ignored(http, CHAT, response_format=made) is None


def test_error_names_the_newest_image(http: httpx.Client) -> None:
    refused = sent(http, CHAT, messages=[{"role": "user", "content": [IMAGES[CHAT]]}])
    assert error_of(refused)["param"] == "messages.0.content.0" and "image_url" in error_of(refused)["message"]


def test_known_fields_without_an_effect_are_reported(http: httpx.Client) -> None:
    fields = {
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content", "message.output_text.logprobs"],
        "store": False,
        "prompt_cache_key": "k",
        "parallel_tool_calls": True,
    }
    assert ignored(http, RESPONSES, **fields) == (
        "text.verbosity (not supported), reasoning.summary (the reasoning is complete), "
        "include[0] (reasoning.encrypted_content)"
    )
    assert ignored(http, CHAT, verbosity="low", web_search_options={"a": 1}) == (
        "verbosity (not supported), web_search_options (not supported)"
    )


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (CHAT, ChatRequest),
        ("/v1/completions", CompletionRequest),
        (RESPONSES, ResponsesRequest),
        (MESSAGES, MessagesRequest),
        ("/api/chat", OllamaChatRequest),
        ("/api/generate", OllamaGenerateRequest),
    ],
)
def test_null_means_absent_for_every_optional_field(http: httpx.Client, path: str, kind: type[msgspec.Struct]) -> None:
    required = {"model": "paris", **PROMPT.get(path, {"prompt": "Hi"})}
    optional = [item.encode_name for item in msgspec.structs.fields(kind) if not item.required]
    nulls = {name: None for name in optional if name not in required}
    answer = http.post(path, json={**nulls, **required})
    assert answer.status_code == 200, answer.text
    assert HEADER not in answer.headers
    assert http.post(
        path, json={name: value for name, value in nulls.items() if name != "stream"} | required
    ).is_success
