"""What the tests of Ollama's API share."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.config.tables import Defaults
from gateway.generation import (
    Generation,
)
from gateway.routes.ollama_api.parse import chat_of, generation_of, prompt_of
from gateway.routes.ollama_api.wire import OllamaChatRequest, OllamaGenerateRequest
from gateway.server.body import parse

QUESTION = "What is the capital of France?"
FRANCE: Any = [{"role": "user", "content": QUESTION}]
_chat_decoder = msgspec.json.Decoder(OllamaChatRequest)
_generate_decoder = msgspec.json.Decoder(OllamaGenerateRequest)


def chat_generation(**fields: Any) -> Generation:
    request = parse(msgspec.json.encode({"model": "m", "messages": FRANCE, **fields}), _chat_decoder)
    return generation_of(request, chat_of(request), Defaults(), id="ollama-1")


def generate_generation(**fields: Any) -> Generation:
    request = parse(msgspec.json.encode({"model": "m", "prompt": QUESTION, **fields}), _generate_decoder)
    return generation_of(request, prompt_of(request), Defaults(), id="ollama-1")


def lines_of(text: str) -> list[dict[str, Any]]:
    assert text.endswith("\n")
    return [msgspec.json.decode(line) for line in text.splitlines()]
