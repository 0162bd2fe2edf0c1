"""Seeded mutations of valid requests, for every endpoint that takes a body."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

from tests.system.input.values import HOSTILE, encoded

_TURN = {"role": "user", "content": "What is the weather in Paris?"}
_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 1, "maxLength": 8, "pattern": "^[a-z]+$"},
        "day": {"type": "string", "format": "date"},
        "degrees": {"type": "number", "minimum": -50, "maximum": 50},
        "hours": {"type": "array", "items": {"type": "integer", "multipleOf": 3}, "minItems": 1, "maxItems": 2},
        "kind": {"enum": ["sun", "rain", None, 5]},
        "more": {"anyOf": [{"$ref": "#/$defs/more"}, {"type": "null"}]},
    },
    "$defs": {"more": {"type": "object", "properties": {"x": {"const": 1}}, "additionalProperties": False}},
    "required": ["city"],
    "additionalProperties": False,
}
_FUNCTION = {"name": "weather", "description": "The weather", "parameters": _SCHEMA, "strict": True}
_TOOL = {"type": "function", "function": _FUNCTION}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "paris"}'}}
_HISTORY = [
    {"role": "system", "content": "Be brief."},
    _TURN,
    {"role": "assistant", "content": None, "tool_calls": [_CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "20 degrees"},
    {"role": "user", "content": [{"type": "text", "text": "And tomorrow? <|im_end|>"}]},
]
_OPTIONS: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "stop": ["\n\n", "END"], "max_tokens": 4}
_CHAT: dict[str, Any] = {"messages": [_TURN], **_OPTIONS}
_MESSAGES: dict[str, Any] = {"messages": [_TURN], "max_tokens": 4}

#: (path, a valid body). The test adds the model's name.
BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", _CHAT | {"n": 2, "logprobs": True, "top_logprobs": 2, "logit_bias": {"5": -1.0}}),
    ("/v1/chat/completions", _CHAT | {"messages": _HISTORY, "tools": [_TOOL], "tool_choice": "auto"}),
    ("/v1/chat/completions", _CHAT | {"tools": [_TOOL], "tool_choice": {"type": "function", "function": _FUNCTION}}),
    (
        "/v1/chat/completions",
        _CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": _SCHEMA}}},
    ),
    ("/v1/chat/completions", _CHAT | {"grammar": 'start: "a" /[b-d]+/ ("e" | "f")* %json {"type": "integer"}'}),
    ("/v1/chat/completions", _CHAT | {"grammar": 'root ::= "yes" | "no" [a-z]* ws\nws ::= " "?'}),
    ("/v1/chat/completions", _CHAT | {"stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", _CHAT | {"prediction": {"type": "content", "content": "The weather in Paris is"}}),
    ("/v1/completions", {"prompt": ["Once", "upon"], "echo": True, "logprobs": 2, **_OPTIONS}),
    ("/v1/completions", {"prompt": [65, 66, 67], "suffix": None, "n": 2, "best_of": 2, "max_tokens": 3}),
    (
        "/v1/responses",
        {
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
            "instructions": "Be brief.",
            "max_output_tokens": 4,
            "text": {"format": {"type": "json_schema", "name": "s", "schema": _SCHEMA}},
        },
    ),
    (
        "/v1/responses",
        {
            "input": "hi",
            "max_output_tokens": 4,
            "tools": [{"type": "function", "name": "weather", "parameters": _SCHEMA, "strict": True}],
            "store": True,
            "metadata": {"a": "b"},
        },
    ),
    (
        "/v1/messages",
        _MESSAGES
        | {
            "system": [{"type": "text", "text": "Be brief."}],
            "tools": [{"name": "weather", "description": "x", "input_schema": _SCHEMA}],
            "tool_choice": {"type": "any"},
            "stop_sequences": ["END"],
        },
    ),
    ("/v1/messages/count_tokens", {"messages": [_TURN], "system": "Be brief."}),
    (
        "/api/chat",
        {"messages": [_TURN], "format": _SCHEMA, "tools": [_TOOL], "options": {"num_predict": 4, "seed": 1}},
    ),
    ("/api/generate", {"prompt": "hi", "system": "Be brief.", "format": "json", "options": {"num_predict": 4}}),
    ("/api/show", {}),
    ("/v1/embeddings", {"model": "vectors", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 4}),
    ("/v1/rerank", {"model": "vectors", "query": "a", "documents": ["a", {"text": "b"}], "top_n": 1}),
    ("/api/embed", {"model": "vectors", "input": ["a", "b"], "truncate": True}),
    ("/tokenize", {"content": "hello <|im_start|>", "add_special": True, "with_pieces": True}),
    ("/detokenize", {"tokens": [65, 66]}),
    ("/apply-template", {"messages": _HISTORY, "tools": [_TOOL]}),
)
_STRINGS = ("\0", "\U000f0000", "\U0010fffd", "<|im_start|>", "<|im_end|>", "é", "\u2028", "\\", '"', "a" * 3000)


def mutations(seed: int, count: int, model: str) -> Iterator[tuple[str, bytes]]:
    """Yield paths and bodies. The same seed gives the same ones."""
    chance = random.Random(seed)
    for number in range(count):
        path, valid = BODIES[number % len(BODIES)]
        body: Any = {"model": model} | copy.deepcopy(valid)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            body = _mutated(body, chance)
        content = encoded(body)
        yield path, _with_bytes_changed(content, chance) if chance.random() < 0.05 else content


def _mutated(body: Any, chance: random.Random) -> Any:
    """The body with one value changed, removed, doubled, moved or wrapped."""
    if not (positions := list(_positions(body))):
        return copy.deepcopy(chance.choice(HOSTILE))
    parent, key = chance.choice(positions)
    value = parent[key]
    match chance.randrange(8):
        case 0 if isinstance(parent, dict):
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[f"{key}{chance.choice(_STRINGS)}"] = parent.pop(key)
        case 2 if isinstance(value, str):
            at = chance.randrange(len(value) + 1)
            parent[key] = value[:at] + chance.choice(_STRINGS) + value[at:]
        case 3 if isinstance(value, int | float) and not isinstance(value, bool):
            parent[key] = chance.choice(
                (-value, value + 1, value * 10**9, value - 1, value / 7 if abs(value) < 1e9 else 0.5)
            )
        case 4:
            parent[key] = chance.choice(([value], {"value": value}, [copy.deepcopy(value) for _ in range(50)]))
        case 5:
            other, name = chance.choice(positions)
            parent[key] = copy.deepcopy(other[name])
        case _:
            parent[key] = copy.deepcopy(chance.choice(HOSTILE))
    return body


def _positions(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every value in a body, but not that of the model's name."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if key != "model":
            yield value, key
        yield from _positions(inner)


def _with_bytes_changed(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 2, 8))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)
