"""A Generation as a request body of OpenAI's API."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.errors import UnsupportedParameter
from gateway.generation import TOOL, UNLIMITED, Chat, Generation, Grammar, Message, Text, TokenIds, Tool, ToolChoice
from gateway.sampling import Sampling, changed, parameters, unsupported


def chat_body(generation: Generation, chat: Chat) -> dict[str, Any]:
    """The body of `/chat/completions` without `model` and `stream`.

    Raises UnsupportedParameter for a parameter that the API does not have.
    """
    logprobs = generation.logprobs
    return _without_none(
        _common(generation)
        | {
            "messages": [_message(message) for message in chat.messages],
            "tools": [_tool(tool) for tool in chat.tools] or None,
            "tool_choice": _tool_choice(chat.tool_choice) if chat.tools else None,
            "parallel_tool_calls": False if chat.tools and not chat.tool_choice.parallel else None,
            "reasoning_effort": chat.reasoning_effort,
            "chat_template_kwargs": chat.template_kwargs or None,
            "response_format": _response_format(generation.grammar) if generation.grammar else None,
            "prediction": {"type": "content", "content": generation.prediction} if generation.prediction else None,
            "logprobs": True if logprobs is not None else None,
            "top_logprobs": logprobs or None,
        }
    )


def completion_body(generation: Generation, prompt: Text | TokenIds) -> dict[str, Any]:
    """The body of `/completions` without `model` and `stream`. Raises UnsupportedParameter."""
    if generation.grammar is not None:
        raise UnsupportedParameter(
            "This model supports a grammar only in a chat. Use /v1/chat/completions.", param="response_format"
        )
    if generation.prompt_logprobs:
        raise UnsupportedParameter("This model has no log-probabilities of the prompt.", param="echo")
    return _without_none(
        _common(generation)
        | {
            "prompt": prompt.text if isinstance(prompt, Text) else list(prompt.ids),
            "suffix": prompt.suffix if isinstance(prompt, Text) else None,
            "logprobs": generation.logprobs,
        }
    )


def _common(generation: Generation) -> dict[str, Any]:
    """The fields of both endpoints. A field that only local servers have is left out unless the request sets it."""
    return {
        **_sampling(generation.sampling),
        "max_tokens": None if generation.max_tokens == UNLIMITED else generation.max_tokens,
        "min_tokens": generation.min_tokens or None,
        "ignore_eos": generation.ignore_eos or None,
        "stop": list(generation.stop) or None,
        "n": generation.n if generation.n > 1 else None,
        "stream_options": {"include_usage": True},
    }


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """Raises UnsupportedParameter for what an OpenAI server does not honour."""
    for name in unsupported(sampling, "upstream"):
        raise UnsupportedParameter(f"The server of this model does not support '{name}'.", param=name)
    sent = {"temperature", "top_p", *changed(sampling)}  # the defaults of these two differ between servers
    return {
        declared.param.names["openai"]: getattr(sampling, name)
        for name, declared in parameters().items()
        if name in sent
    }


def _message(message: Message) -> dict[str, Any]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    optional = {"name": message.name, "tool_call_id": message.tool_call_id, "tool_calls": calls or None}
    return {"role": message.role, "content": message.content, **_without_none(optional)}


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function | ({"strict": True} if tool.strict else {})}


def _tool_choice(choice: ToolChoice) -> Any:
    match choice.names:
        case ():
            return choice.mode
        case (name,) if choice.mode == "required":
            return {"type": "function", "function": {"name": name}}
        case names:
            tools = [{"type": "function", "function": {"name": name}} for name in names]
            return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode, "tools": tools}}


def _response_format(grammar: Grammar) -> dict[str, Any]:
    match grammar.kind:
        case "json_object":
            return {"type": "json_object"}
        case "json_schema":
            decoded = msgspec.json.decode(grammar.source)
            is_strict = decoded.pop(TOOL, None) is None
            schema = {"name": "answer", "schema": decoded, "strict": is_strict}
            return {"type": "json_schema", "json_schema": schema}
        case kind:
            raise UnsupportedParameter(
                f"This model does not support a {kind} grammar. Use a JSON schema.", param="response_format"
            )


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
