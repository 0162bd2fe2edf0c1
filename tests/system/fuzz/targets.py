"""Fuzz targets: functions that take bytes and raise if a property does not hold. `scripts/fuzz.py` runs them.

Form of the input:
    requests     the first byte selects the endpoint, the rest is the body of the request
    textstream   patterns and pieces of text, with separators that are not UTF-8 (0xff, 0xfe)
    dialects     four bytes select the family, the tool choice, the end of the prompt and the cuts; then the text
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway.config.tables import Defaults
from gateway.dialects.base import Delta, Parser
from gateway.dialects.choose import choose_dialect
from gateway.errors import GatewayError
from gateway.generation import (
    Chat,
    Generation,
    Message,
    ReasoningDelta,
    Text,
    TextDelta,
    TokenIds,
    Tool,
    ToolCallDelta,
    ToolChoice,
)
from gateway.routes.anthropic_api.parse import messages_generation
from gateway.routes.anthropic_api.wire import MessagesRequest
from gateway.routes.ollama_api import parse as ollama_parse
from gateway.routes.ollama_api.wire import OllamaChatRequest, OllamaGenerateRequest
from gateway.routes.openai_api.parse_chat import chat_generation
from gateway.routes.openai_api.parse_completions import completion_generations
from gateway.routes.openai_api.wire import ChatRequest
from gateway.routes.openai_api.wire_completions import CompletionRequest
from gateway.routes.responses_api.parse import response_generation
from gateway.routes.responses_api.parse_items import located_items
from gateway.routes.responses_api.store import ResponseStore
from gateway.routes.responses_api.wire import ResponsesRequest
from gateway.server.body import parse
from gateway.text.textstream import TextStream

DEFAULTS = Defaults()
STORE = ResponseStore()


# ---- JSON -> Generation


def _chat(request: ChatRequest) -> list[Generation]:
    return [chat_generation(request, DEFAULTS, id="x")]


def _completions(request: CompletionRequest) -> list[Generation]:
    return completion_generations(request, DEFAULTS, id="x")


def _responses(request: ResponsesRequest) -> list[Generation]:
    return [response_generation(request, located_items(request, STORE, ""), DEFAULTS, id="x")]


def _messages(request: MessagesRequest) -> list[Generation]:
    return [messages_generation(request, DEFAULTS, id="x")]


def _ollama_chat(request: OllamaChatRequest) -> list[Generation]:
    prompt = ollama_parse.chat_of(request)
    return [ollama_parse.generation_of(request, prompt, DEFAULTS, id="x")]


def _ollama_generate(request: OllamaGenerateRequest) -> list[Generation]:
    prompt = ollama_parse.prompt_of(request)
    return [ollama_parse.generation_of(request, prompt, DEFAULTS, id="x")]


ENDPOINTS: tuple[tuple[msgspec.json.Decoder[Any], Callable[[Any], list[Generation]]], ...] = (
    (msgspec.json.Decoder(ChatRequest), _chat),
    (msgspec.json.Decoder(CompletionRequest), _completions),
    (msgspec.json.Decoder(ResponsesRequest), _responses),
    (msgspec.json.Decoder(MessagesRequest), _messages),
    (msgspec.json.Decoder(OllamaChatRequest), _ollama_chat),
    (msgspec.json.Decoder(OllamaGenerateRequest), _ollama_generate),
)


def requests(data: bytes) -> None:
    """A body becomes Generations that an engine can run, or a refusal. No other exception is raised."""
    if not data:
        return
    decoder, build = ENDPOINTS[data[0] % len(ENDPOINTS)]
    try:
        made = build(parse(data[1:], decoder))
    except GatewayError as refusal:
        assert 400 <= refusal.status < 500, refusal
        refusal.message.encode()
        return
    for generation in made:
        assert generation.max_tokens >= 0 and generation.n >= 1
        assert 0 <= generation.min_tokens <= max(generation.max_tokens, 0)
        assert all(generation.stop)
        # the worker gets all except the text as msgpack, and must decode the same values
        sent = generation if isinstance(generation.prompt, TokenIds) else replace(generation, prompt=Text(""))
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(sent), type=Generation) == sent


# ---- the text stream


def textstream(data: bytes) -> None:
    """The matches equal those of a search in the whole text, for any cut, and no text is lost."""
    head, _, tail = data.partition(b"\xff")
    patterns = [text for part in head.split(b"\xfe")[:8] if (text := part.decode(errors="ignore"))]
    pieces = [part.decode(errors="ignore") for part in tail.split(b"\xfe")]
    stream, got = TextStream(patterns), ""
    for piece in pieces:
        text, match = stream.push(piece)
        got += text
        while match is not None:
            text, following = stream.push("")
            got += f"\0{match}\0{text}"
            match = following
    match = ""
    while match is not None:
        text, match = stream.finish()
        got += text if match is None else f"{text}\0{match}\0"
    assert got == _searched("".join(pieces), patterns)


def _searched(text: str, patterns: list[str]) -> str:
    done = ""
    while found := [(text.find(pattern), len(pattern), pattern) for pattern in patterns if pattern in text]:
        start, length, pattern = min(found)
        done += f"{text[:start]}\0{pattern}\0"
        text = text[start + length :]
    return done + text


# ---- the dialects


#: The first byte of a corpus file is an index of this list, so a new dialect goes to the end.
FAMILIES = (
    "plain",
    "generic",
    "hermes",
    "qwen",
    "llama",
    "mistral",
    "mistral-args",
    "phi",
    "deepseek",
    "granite",
    "gemma",
)
CHOICES = (
    ToolChoice(),
    ToolChoice(mode="none"),
    ToolChoice(mode="required"),
    ToolChoice(parallel=False),
    ToolChoice(mode="required", names=("get_weather",)),
)
ENDS = ("", "<think>\n", "<think>\n\n</think>\n\n")
TOOLS = (Tool(name="f"), Tool(name="get_weather"))
THOUGHTS = ("<think>", "[THINK]", "Here is my thought process:")


class Read(Struct):
    content: str = ""
    reasoning: str = ""
    calls: list[list[str]] = []  # name and arguments


def dialects(data: bytes) -> None:
    """A parser raises for no text, the cut changes nothing, and text without markup is complete."""
    if len(data) < 4:
        return
    family, choice, end = FAMILIES[data[0] % len(FAMILIES)], CHOICES[data[1] % len(CHOICES)], ENDS[data[2] % len(ENDS)]
    text = data[4:].decode(errors="ignore")
    chat = Chat(messages=(Message(role="user", content="?"),), tools=TOOLS, tool_choice=choice)

    def parser() -> Parser:
        return choose_dialect(family, "").parser(chat, end, 0)

    whole, step = _read(parser(), [text]), 1 + data[3] % 16
    assert _read(parser(), list(text)) == whole
    assert _read(parser(), [text[i : i + step] for i in range(0, len(text), step)]) == whole
    assert all(name in ("f", "get_weather") for name, _ in whole.calls)
    if not whole.calls and choice.mode != "required" and end == "" and not any(mark in text for mark in THOUGHTS):
        assert (whole.content, whole.reasoning) == (text, "")


def _read(parser: Parser, pieces: list[str]) -> Read:
    deltas: list[Delta] = [delta for piece in pieces for delta in parser.push(piece)]
    deltas += parser.finish()
    read = Read()
    for delta in deltas:
        match delta:
            case TextDelta(text=text):
                assert text
                read.content += text
            case ReasoningDelta(text=text):
                assert text
                read.reasoning += text
            case ToolCallDelta(name=str(name), index=index):
                assert index == len(read.calls) and delta.id
                read.calls.append([name, delta.arguments])
            case ToolCallDelta(arguments=arguments):
                assert arguments and delta.index == len(read.calls) - 1
                read.calls[-1][1] += arguments
    return read


TARGETS: dict[str, Callable[[bytes], None]] = {"requests": requests, "textstream": textstream, "dialects": dialects}
