"""Reads a reply of chat completions, responses or messages, whole or as a stream, for comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from gateway.commands.verify.outcome import promise
from gateway.commands.verify.peer import ToolCall


class Recorded(Struct, kw_only=True):
    """`is_cut`: the answer reached its limit. `has_ended`: the last event that a stream must have is there."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = []
    is_cut: bool = False
    has_ended: bool = False

    def __str__(self) -> str:
        return ", ".join(map(str, self.calls)) or repr(self.text)


def read_reply(text: str) -> Recorded:
    """Raises GatewayFault if it is no reply of one of these APIs, or a stream without its end."""
    reply = Recorded(calls=[])
    try:
        events = _events(text)
        if not events and text.lstrip().startswith("{"):
            _read_whole(json.loads(text), reply)
        else:
            _read_stream(events, reply)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        promise(False, f"a reply of an unknown form ({type(error).__name__} {error}): {text}")
    promise(reply.has_ended, f"a stream without its end: {text[-200:]}")
    return reply


def _events(text: str) -> list[Any]:
    """The data of server-sent events; "[DONE]" stays a text."""
    found = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


def _read_whole(body: dict[str, Any], reply: Recorded) -> None:
    if "choices" in body:
        (choice,) = body["choices"]
        _add_message(choice["message"], reply)
        reply.is_cut = choice["finish_reason"] == "length"
    elif body.get("object") == "response":
        _add_items(body, reply)
    else:
        for block in body["content"]:
            _add_block(block, reply)
        reply.is_cut = body["stop_reason"] == "max_tokens"
    reply.has_ended = True


def _read_stream(events: list[Any], reply: Recorded) -> None:
    kinds = {event.get("type") for event in events if isinstance(event, dict)}
    if "message_start" in kinds:
        _read_messages(events, reply)
    elif "response.created" in kinds:
        last = events[-1] if isinstance(events[-1], dict) else events[-2]
        reply.has_ended = last["type"] in ("response.completed", "response.incomplete")
        _add_items(last["response"], reply)
    else:
        reply.has_ended = events[-1] == "[DONE]"
        _read_chunks([event for event in events if isinstance(event, dict)], reply)


def _read_chunks(chunks: list[dict[str, Any]], reply: Recorded) -> None:
    calls: dict[int, list[str]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        delta = choice["delta"]
        reply.text += delta.get("content") or ""
        reply.reasoning += delta.get("reasoning_content") or ""
        reply.is_cut = reply.is_cut or choice.get("finish_reason") == "length"
        for call in delta.get("tool_calls") or []:
            parts = calls.setdefault(call["index"], ["", ""])
            parts[0] += call["function"].get("name") or ""
            parts[1] += call["function"].get("arguments") or ""
    reply.calls = [ToolCall(*parts) for parts in calls.values()]


def _read_messages(events: list[Any], reply: Recorded) -> None:
    blocks: dict[int, dict[str, Any]] = {}
    for event in events:
        match event:
            case {"type": "content_block_start", "index": index, "content_block": block}:
                blocks[index] = {**block, "input": ""}
            case {"type": "content_block_delta", "index": index, "delta": delta}:
                key = {"text_delta": "text", "thinking_delta": "thinking"}.get(delta["type"], "input")
                blocks[index][key] = blocks[index].get(key, "") + (delta.get(key) or delta.get("partial_json") or "")
            case {"type": "message_delta", "delta": {"stop_reason": reason}}:
                reply.is_cut = reason == "max_tokens"
    for block in blocks.values():
        _add_block(block, reply)
    reply.has_ended = events[-1]["type"] == "message_stop"


def _add_message(message: dict[str, Any], reply: Recorded) -> None:
    reply.text, reply.reasoning = message.get("content") or "", message.get("reasoning_content") or ""
    functions = [call["function"] for call in message.get("tool_calls") or []]
    reply.calls = [ToolCall(function["name"], function["arguments"]) for function in functions]


def _add_items(response: dict[str, Any], reply: Recorded) -> None:
    reply.is_cut = response["status"] == "incomplete"
    for item in response["output"]:
        match item["type"]:
            case "message":
                reply.text += "".join(_texts(item["content"]))
            case "reasoning":
                reply.reasoning += "".join(_texts(item.get("content") or []))
            case "function_call":
                reply.calls.append(ToolCall(item["name"], item["arguments"]))


def _texts(parts: list[dict[str, Any]]) -> Iterator[str]:
    return (part.get("text", "") for part in parts)


def _add_block(block: dict[str, Any], reply: Recorded) -> None:
    match block["type"]:
        case "text":
            reply.text += block["text"]
        case "thinking":
            reply.reasoning += block["thinking"]
        case "tool_use":
            arguments = block["input"]
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            reply.calls.append(ToolCall(block["name"], text or "{}"))
