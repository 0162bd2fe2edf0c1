"""What the tests of Anthropic's API share."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.config.tables import Defaults
from gateway.generation import (
    Generation,
)
from gateway.routes.anthropic_api.parse import messages_generation
from gateway.routes.anthropic_api.wire import MessagesRequest
from gateway.server.body import parse

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
TOOL: Any = {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}
_decoder = msgspec.json.Decoder(MessagesRequest)


def body(model: str = "paris", **fields: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 64, "messages": FRANCE, **fields}


def generation(**fields: Any) -> Generation:
    request = parse(msgspec.json.encode(body(**fields)), _decoder)
    return messages_generation(request, Defaults(), id="msg_1")


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The named events of a stream, comments left out."""
    frames = [frame.split("\n") for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    return [(name.removeprefix("event: "), msgspec.json.decode(data.removeprefix("data: "))) for name, data in frames]
