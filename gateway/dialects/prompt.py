"""Tools for models whose template has no place for them: what they are told, and how calls and results are written.

The system message gets a last paragraph, the same for every such model:

    You may call these functions, one JSON object a line:
    <tools>
    {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}
    </tools>
    To call one, answer with nothing but this, its arguments as JSON:
    <tool_call>
    {"name": "the function", "arguments": {"argument": "value"}}
    </tool_call>
    Its result comes back as <tool_response>...</tool_response>. If none is of use, answer in words.

Earlier calls stand in the assistant's messages as they would have been written; results are a user's message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

from msgspec.structs import replace

from gateway.dialects.base import offered
from gateway.generation import Chat, Message, Tool, ToolCall, ToolChoice

#: Calls in a family's own markup.
Write = Callable[[Sequence[tuple[str, str]]], str]

_KNOWS_TOOLS = re.compile(r"\btools\b")
_LAST_WORD = {
    "auto": "If none is of use, answer in words.",
    "required": "You must call one now.",
}


def knows_tools(template: str) -> bool:
    return _KNOWS_TOOLS.search(template) is not None


def explained(chat: Chat, write: Write) -> Chat:
    """The chat with its tools, calls and results as text; without tools and calls it stays as it is."""
    tools = offered(chat)
    messages = list(_spelled(chat.messages, write))
    if tools:
        told = _instructions(tools, chat.tool_choice, write)
        if messages and messages[0].role == "system":
            messages[0] = replace(messages[0], content=f"{messages[0].content or ''}\n\n{told}".lstrip())
        else:
            messages.insert(0, Message(role="system", content=told))
    return replace(chat, messages=tuple(messages), tools=())


def _instructions(tools: Sequence[Tool], choice: ToolChoice, write: Write) -> str:
    listed = "\n".join(json.dumps(_described(tool), ensure_ascii=False) for tool in tools)
    example = write([("the function", '{"argument": "value"}')])
    return (
        f"You may call these functions, one JSON object a line:\n<tools>\n{listed}\n</tools>\n"
        f"To call one, answer with nothing but this, its arguments as JSON:\n{example}\n"
        f"Its result comes back as <tool_response>...</tool_response>. {_LAST_WORD[choice.mode]}"
    )


def _described(tool: Tool) -> dict[str, object]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _spelled(messages: Iterable[Message], write: Write) -> Iterable[Message]:
    """Calls in their messages' text; results that follow one another in one user's message."""
    results: list[str] = []
    for message in messages:
        if message.role == "tool":
            results.append(f"<tool_response>\n{message.content or ''}\n</tool_response>")
            continue
        yield from _results(results)
        results = []
        yield _with_calls(message, write) if message.tool_calls else message
    yield from _results(results)


def _results(results: Sequence[str]) -> Iterable[Message]:
    if results:
        yield Message(role="user", content="\n".join(results))


def _with_calls(message: Message, write: Write) -> Message:
    written = write([_pair(call) for call in message.tool_calls])
    content = f"{message.content}\n{written}" if message.content else written
    return replace(message, content=content, tool_calls=())


def _pair(call: ToolCall) -> tuple[str, str]:
    return call.name, call.arguments or "{}"
