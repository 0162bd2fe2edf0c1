"""Tool use for models whose chat template does not render tools: tools, calls and results become message text.

The system message gets one more paragraph:

    You may call these functions, one JSON object a line:
    <tools>
    {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}
    </tools>
    To call one, answer with nothing but this, its arguments as JSON:
    <tool_call>
    {"name": "the function", "arguments": {"argument": "value"}}
    </tool_call>
    Its result comes back as <tool_response>...</tool_response>. If none is of use, answer in words.

Earlier calls become text of the assistant's messages, in the markup of the dialect. Their results become one message
of the user. The paragraph is part of the prompt: a change of its words changes the output of models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from gateway.dialects.base import callable_tools
from gateway.generation import Chat, Message, Tool, ToolCall, ToolChoice

#: Calls, each (name, arguments as JSON) -> text in the dialect's markup.
FormatCalls = Callable[[Sequence[tuple[str, str]]], str]

_LAST_SENTENCE = {
    "auto": "If none is of use, answer in words.",
    "required": "You must call one now.",
}


def with_tools_as_text(chat: Chat, format_calls: FormatCalls) -> Chat:
    """Return the chat with its tools, calls and results written into the messages."""
    tools = callable_tools(chat)
    messages = list(with_history_as_text(chat.messages, format_calls, calls=True, results=True))
    if tools:
        paragraph = _instructions(tools, chat.tool_choice, format_calls)
        if messages and messages[0].role == "system":
            messages[0] = replace(messages[0], content=f"{messages[0].content or ''}\n\n{paragraph}".lstrip())
        else:
            messages.insert(0, Message(role="system", content=paragraph))
    return replace(chat, messages=tuple(messages), tools=())


def _instructions(tools: Sequence[Tool], choice: ToolChoice, format_calls: FormatCalls) -> str:
    listed = "\n".join(json.dumps(_openai_tool(tool), ensure_ascii=False) for tool in tools)
    example = format_calls([("the function", '{"argument": "value"}')])
    return (
        f"You may call these functions, one JSON object a line:\n<tools>\n{listed}\n</tools>\n"
        f"To call one, answer with nothing but this, its arguments as JSON:\n{example}\n"
        f"Its result comes back as <tool_response>...</tool_response>. {_LAST_SENTENCE[choice.mode]}"
    )


def _openai_tool(tool: Tool) -> dict[str, object]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def with_history_as_text(
    messages: Iterable[Message], format_calls: FormatCalls, *, calls: bool, results: bool
) -> Iterable[Message]:
    """Move calls into the text of their messages, and consecutive results into one message of the user.

    Args:
        calls, results: move them. What the chat template renders itself stays.
    """
    found: list[str] = []
    for message in messages:
        if results and message.role == "tool":
            found.append(f"<tool_response>\n{message.content or ''}\n</tool_response>")
            continue
        yield from _results(found)
        found = []
        yield _with_calls(message, format_calls) if calls and message.tool_calls else message
    yield from _results(found)


def _results(results: Sequence[str]) -> Iterable[Message]:
    if results:
        yield Message(role="user", content="\n".join(results))


def _with_calls(message: Message, format_calls: FormatCalls) -> Message:
    calls = format_calls([_pair(call) for call in message.tool_calls])
    content = f"{message.content}\n{calls}" if message.content else calls
    return replace(message, content=content, tool_calls=())


def _pair(call: ToolCall) -> tuple[str, str]:
    return call.name, call.arguments or "{}"
