"""What the tests of the Responses API share."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from gateway.config.tables import Defaults
from gateway.generation import (
    Chat,
    Generation,
    Message,
)
from gateway.routes.responses_api.parse import response_generation
from gateway.routes.responses_api.parse_items import located_items
from gateway.routes.responses_api.render import ResponsesRendering
from gateway.routes.responses_api.store import ResponseStore
from gateway.routes.responses_api.wire import ResponsesRequest
from gateway.server.body import parse

FRANCE = "What is the capital of France?"
TOOL: Any = {"type": "function", "name": "weather", "description": "d", "parameters": {"type": "object"}}
NAMESPACE: Any = {"type": "namespace", "name": "agents", "description": "d", "tools": [TOOL]}
_decoder = msgspec.json.Decoder(ResponsesRequest)


def generation(store: ResponseStore | None = None, **fields: Any) -> Generation:
    request = parse(msgspec.json.encode({"model": "m", "input": FRANCE, **fields}), _decoder)
    items = located_items(request, store or ResponseStore(), "me")
    return response_generation(request, items, Defaults(), id="resp_1")


def chat_of(**fields: Any) -> Chat:
    prompt = generation(**fields).prompt
    assert isinstance(prompt, Chat)
    return prompt


def messages_of(*items: Any, **fields: Any) -> tuple[Message, ...]:
    return chat_of(input=items, **fields).messages


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    frames = [frame.split("\n") for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


def rendering(save: Any = lambda response: None, **fields: Any) -> ResponsesRendering:
    request = parse(msgspec.json.encode({"model": "m", "input": FRANCE, **fields}), _decoder)
    return ResponsesRendering(request, generation(**fields), save)
