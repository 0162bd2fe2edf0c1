"""The choice of a model's dialect, and the plain dialect."""

from __future__ import annotations

import pytest

from gateway.dialects.choose import choose_dialect
from gateway.errors import ConfigError, UnsupportedParameter
from gateway.generation import Chat, Message, TextDelta, Tool, ToolChoice

CHAT = Chat(messages=(Message(role="user", content="Hi"),))


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("", "plain"),
        ("<|im_start|>{{ message.content }}<|im_end|>", "generic"),
        ("{% if tools %}<tool_call>{% endif %}", "hermes"),
        ("{% if tools %}<tool_call>{% endif %}{% if enable_thinking %}<think>{% endif %}", "qwen"),
        ("<|start_header_id|>{% if tools %}<|python_tag|>{% endif %}", "llama"),
        ("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]", "mistral"),
        ("[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS]{{ name }}[ARGS]", "mistral-args"),
        ("{% if tools %}<|tool|>{{ tools }}<|/tool|>{% endif %}", "phi"),
        ("<｜User｜>{{ m }}<｜Assistant｜>", "deepseek"),
        ("<|start_of_role|>{{ m }}{% if tools %}<|tool_call|>{% endif %}", "granite"),
        ("<|start_of_role|>{{ m }}{% if tools %}<tool_call>{% endif %}", "hermes"),
        ("<start_of_turn>{{ m }}<end_of_turn>", "gemma"),
    ],
)
def test_template_chooses_its_family(template: str, name: str) -> None:
    assert choose_dialect("", template).name == name


def test_configured_name_overrides_template() -> None:
    assert choose_dialect("llama", "[TOOL_CALLS]").name == "llama"


def test_plain_dialect_returns_all_text_as_content() -> None:
    dialect = choose_dialect("plain", "")
    assert dialect.prepare(CHAT, "") is CHAT
    assert dialect.grammar(CHAT, "", repr, None) is None
    parser = dialect.parser(CHAT, "", 2)
    assert [*parser.push("<think>a</think>"), *parser.push(""), *parser.finish()] == [TextDelta("<think>a</think>", 2)]


def test_plain_dialect_refuses_required_call() -> None:
    chat = Chat(messages=CHAT.messages, tools=(Tool(name="f"),), tool_choice=ToolChoice(mode="required"))
    with pytest.raises(UnsupportedParameter, match="plain"):
        choose_dialect("plain", "").grammar(chat, "", repr, None)


def test_unknown_name_is_config_error_with_known_names() -> None:
    with pytest.raises(ConfigError, match=r"klingon.*plain"):
        choose_dialect("klingon", "")
