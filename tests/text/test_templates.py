"""Chat templates: their variables, their output, and the errors that a client gets."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.errors import BundleError, InvalidRequest
from gateway.generation import Chat, Message, Tool, ToolCall
from gateway.text.templates import ChatTemplate

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def chat(*messages: Message, **fields: Any) -> Chat:
    return Chat(messages=messages or (Message(role="user", content="Hi"),), **fields)


def user(content: str) -> Message:
    return Message(role="user", content=content)


def assistant(content: str | None, **fields: Any) -> Message:
    return Message(role="assistant", content=content, **fields)


def render(source: str, chat: Chat, **config: Any) -> str:
    return ChatTemplate(source, config).render(chat)


def test_render_opens_a_turn_for_the_model() -> None:
    assert render(CHATML, chat()) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("content", ["The capital", "ends with space ", "", "two\nlines\n"])
def test_render_leaves_last_assistant_message_open(content: str) -> None:
    expected = f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{content}"
    assert render(CHATML, chat(user("Hi"), assistant(content))) == expected
    trimming = CHATML.replace("message['content']", "message['content'] | trim")
    assert render(trimming, chat(user("Hi"), assistant(content))) == expected.replace(content, content.lstrip())


def test_render_keeps_two_assistant_messages_at_the_end() -> None:
    text = render(CHATML, chat(user("Hi"), assistant("a"), assistant("b")))
    assert text.endswith("assistant\na<|im_end|>\n<|im_start|>assistant\nb")


def test_render_opens_a_turn_if_template_drops_last_assistant_message() -> None:
    source = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    source += "{% if add_generation_prompt %}>{% endif %}"
    assert render(source, chat(user("Hi"), assistant("no"))) == "Hi>"


def test_render_closes_last_assistant_message_with_tool_calls() -> None:
    call = ToolCall("c1", "f", '{"a": 1}')
    assert render(CHATML, chat(user("Hi"), assistant(None, tool_calls=(call,)))).endswith("<|im_start|>assistant\n")


def test_variables_have_the_form_of_transformers() -> None:
    messages = (
        user("Hi"),
        assistant(None, tool_calls=(ToolCall("c1", "f", '{"é": [1, "<"]}'), ToolCall("c2", "g", "not json"))),
        Message(role="tool", content="42", tool_call_id="c1", name="f"),
        assistant("so", reasoning="because"),
        user("?"),
    )
    tool = Tool(name="f", description="does", parameters={"type": "object"})
    source = "{{ messages | tojson }}|{{ tools | tojson }}|{{ documents }}|{{ bos_token }}{{ eos_token }}"
    text = render(
        source, chat(*messages, tools=(tool,)), bos_token="<s>", eos_token={"content": "</s>"}, pad_token=None
    )
    rest, tools, documents, special = text.split("|")
    assert rest == (
        '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": ['
        '{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"é": [1, "<"]}}}, '
        '{"id": "c2", "type": "function", "function": {"name": "g", "arguments": "not json"}}]}, '
        '{"role": "tool", "content": "42", "name": "f", "tool_call_id": "c1"}, '
        '{"role": "assistant", "content": "so", "reasoning_content": "because"}, '
        '{"role": "user", "content": "?"}]'
    )
    assert tools == (
        '[{"type": "function", "function": {"name": "f", "description": "does", "parameters": {"type": "object"}}}]'
    )
    assert (documents, special) == ("None", "<s></s>")


def test_tools_variable_is_none_without_tools() -> None:
    assert render("{{ tools is none }}", chat()) == "True"


def test_reasoning_effort_and_template_kwargs_become_variables() -> None:
    source = "{{ reasoning_effort | default('-') }} {{ enable_thinking | default('-') }} {{ mood | default('-') }}"
    assert render(source, chat()) == "- - -"
    assert render(source, chat(reasoning_effort="low")) == "low True -"
    assert render(source, chat(reasoning_effort="none")) == "none False -"
    kwargs = {"enable_thinking": True, "mood": "good", "messages": "ignored"}
    assert render(source, chat(reasoning_effort="none", template_kwargs=kwargs)) == "none True good"
    assert render("{{ messages[0].content }}", chat(template_kwargs=kwargs)) == "Hi"


def test_strftime_now_returns_the_date() -> None:
    assert render("{{ strftime_now('%Y') }}", chat()).startswith("20")


def test_raise_exception_is_invalid_request_with_its_message() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as refused:
        render("{{ raise_exception('roles must alternate') }}", chat())
    assert refused.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].nothing.more }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ raise_exception('x' * 99999) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_failing_template_is_invalid_request(source: str) -> None:
    with pytest.raises(InvalidRequest, match="template") as refused:
        render(source, chat())
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("source", ["{% for %}", "{{ x | no_such_filter }}", "{% include %}", "{{" + "(" * 9999])
def test_invalid_template_is_bundle_error(source: str) -> None:
    with pytest.raises(BundleError, match="chat template"):
        ChatTemplate(source, {})


def test_escape_receives_all_client_text_in_its_final_form() -> None:
    seen: list[Any] = []

    def escape(variables: Any) -> Any:
        seen.append(variables)
        return variables

    call = ToolCall("c1", "f", '{"a": "\\u003c|im_end|>"}')
    messages = (user("x"), assistant(None, tool_calls=(call,)), Message(role="tool", content="y"))
    tools = (Tool(name="f", description="<|im_end|>"),)
    ChatTemplate("", {}).render(chat(*messages, tools=tools, template_kwargs={"k": "z"}), escape)
    ((variables),) = seen
    assert variables["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"a": "<|im_end|>"}
    assert variables["tools"][0]["function"]["description"] == "<|im_end|>"
    assert variables["k"] == "z"
