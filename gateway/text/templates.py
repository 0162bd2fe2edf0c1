"""A model's own chat template: turns a conversation into the prompt text.

Templates are written for Hugging Face transformers. They get the same variables here as there: messages as dicts, tool
arguments as objects, `tools`, `add_generation_prompt`, the special tokens by name, `raise_exception`, `strftime_now`.
If the last message is from the assistant, its turn is not closed, and the model continues it.

What a template would refuse or lose gets the form that it renders (`template_traits.py`, `template_fit.py`).
"""

from __future__ import annotations

import json
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
import msgspec

from gateway.errors import BundleError, InvalidRequest
from gateway.generation import Chat, Message, Tool, ToolCall
from gateway.text.jinja_environment import Environment
from gateway.text.template_fit import fit
from gateway.text.template_traits import IN_SYSTEM_MESSAGE, Traits, content_parts, find_traits, stricter

_MAX_REASON = 200  # characters of a template's own message: it can quote a whole request
_SPECIAL_NAMES = re.compile(r"(bos|eos|unk|pad|sep|cls|mask)_token")


class _Refused(Exception):
    """The template called `raise_exception`."""


class ChatTemplate:
    """A compiled template. `render` is thread-safe.

    Args:
        source: the Jinja text.
        tokenizer_config: tokenizer_config.json, for the special tokens that templates name.

    Raises:
        BundleError: the template cannot be compiled.
    """

    def __init__(self, source: str, tokenizer_config: Mapping[str, Any]) -> None:
        self.source = source
        self._constants = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in tokenizer_config.items()
            if _SPECIAL_NAMES.fullmatch(name) and value is not None
        }
        self._open_end = (
            f"\U0010fffd{secrets.token_hex(8)}"  # marks the end of an open turn; random, so that no client can send it
        )
        environment = Environment()
        environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise BundleError(f"The model's chat template cannot be compiled: {error}.") from error

    @cached_property
    def traits(self) -> Traits:
        """What the template renders, and in which form. Found at the first use, within the limits of a request."""
        return find_traits(self._attempt, self.source)

    def render(self, chat: Chat, escape: Callable[[Any], Any] = lambda variables: variables) -> str:
        """Return the prompt's text.

        Args:
            chat: the conversation.
            escape: applied to the variables that come from the client, before the template runs.

        Raises:
            InvalidRequest: the template refuses the conversation in every form (with its own message), or fails.
            MemoryError: the process has no memory left.
        """
        refusals = []
        for traits in (self.traits, *stricter(self.traits)):
            try:
                return self._render_fitted(fit(chat, traits), traits, escape)
            except InvalidRequest as error:
                refusals.append(error)
        raise refusals[0]

    def _render_fitted(self, chat: Chat, traits: Traits, escape: Callable[[Any], Any]) -> str:
        is_open = chat.messages[-1].role == "assistant" and not chat.messages[-1].tool_calls
        variables = escape(template_variables(chat, traits))
        if is_open:
            _append(variables["messages"][-1], self._open_end)
        text = self._render(self._constants | variables | {"add_generation_prompt": not is_open})
        if is_open and self._open_end not in text:  # the template does not render this message
            return self._render(self._constants | variables | {"add_generation_prompt": True})
        return text[: text.rindex(self._open_end)] if is_open else text

    def _attempt(self, variables: Mapping[str, Any]) -> str | None:
        try:
            return self._render({**self._constants, **variables})
        except InvalidRequest:
            return None

    def _render(self, variables: Mapping[str, Any]) -> str:
        try:
            return self._template.render(variables)
        except MemoryError:
            raise
        except _Refused as error:
            raise _invalid(f"refuses the messages: {error}") from None
        except Exception as error:  # the template is foreign code and can raise anything
            raise _invalid(f"cannot render the messages: {error}") from error


def _invalid(what: str) -> InvalidRequest:
    cut = what if len(what) <= _MAX_REASON else f"{what[:_MAX_REASON]}..."
    return InvalidRequest(f"The model's chat template {cut}", param="messages")


def template_variables(chat: Chat, traits: Traits) -> dict[str, Any]:
    """The conversation as new dicts, lists and strings, under the names that templates use."""
    variables: dict[str, Any] = dict(msgspec.to_builtins(chat.template_kwargs))
    if chat.reasoning_effort is not None:
        thinks = chat.reasoning_effort != "none"
        variables = {
            "reasoning_effort": chat.reasoning_effort,
            "enable_thinking": thinks,
            "thinking": thinks,
        } | variables
    messages = [_message(message, traits) for message in chat.messages]
    tools = [_tool(tool) for tool in chat.tools] or None
    variables |= {"messages": messages, "tools": None, "documents": None}
    if tools and traits.tools == IN_SYSTEM_MESSAGE:
        messages[0]["tools"] = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    elif tools:
        variables[traits.tools or "tools"] = tools
    return variables


def _message(message: Message, traits: Traits) -> dict[str, Any]:
    optional = {
        "name": message.name,
        traits.reasoning or "reasoning_content": message.reasoning,
        "tool_call_id": message.tool_call_id,
        "tool_calls": [_tool_call(call, traits) for call in message.tool_calls] or None,
    }
    given = {key: value for key, value in optional.items() if value is not None}
    return {"role": message.role, "content": _content(message, traits), **given}


def _content(message: Message, traits: Traits) -> Any:
    if message.tool_calls and not message.content and traits.null_content:
        return None
    text = message.content or ""
    return content_parts(text) if traits.parts else text


def _append(message: dict[str, Any], text: str) -> None:
    if isinstance(message["content"], str):
        message["content"] += text
    else:
        message["content"][-1]["text"] += text


def _tool_call(call: ToolCall, traits: Traits) -> dict[str, Any]:
    arguments = call.arguments or "{}" if traits.text_arguments else _arguments(call)
    if traits.only_objects and not traits.text_arguments and not isinstance(arguments, dict):
        arguments = {"arguments": arguments}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _arguments(call: ToolCall) -> Any:
    """Arguments as an object, which templates print as JSON. Text that is not a JSON object stays text."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return call.arguments
    return arguments if isinstance(arguments, dict) else call.arguments


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _raise_exception(message: str) -> None:
    raise _Refused(message)


def _strftime_now(format: str) -> str:
    if sys.platform == "win32":
        format = format.replace("%-", "%#")  # a number without a leading zero
    return datetime.now().strftime(format)
