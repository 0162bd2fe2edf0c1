"""JSON: any object, and objects of a schema. That they are valid is the gateway's part, what is in them the model's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from gateway.commands.verify.check import Check
from gateway.commands.verify.outcome import NotApplicable, expect, promise
from gateway.commands.verify.peer import Peer, Reply
from gateway.commands.verify.schema import misfit

GROUP = "JSON"


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_TEXT, _NUMBER, _COLOUR = {"type": "string"}, {"type": "integer"}, {"type": "string", "enum": ["red", "green", "blue"]}

#: prompt, a word of the answer
_OBJECTS = (
    ('Answer in JSON with the key "capital". What is the capital of France?', "paris"),
    ('Answer in JSON with the keys "name" and "age". Anna is 31 years old.', "31"),
    ('Give me a JSON object with the key "fruits" and a list of three fruits, one of which is an apple.', "apple"),
)
#: name, schema, prompt, a word of the answer
_SCHEMAS = (
    ("text", _object(capital=_TEXT), "What is the capital of France? Answer in JSON.", "paris"),
    ("number", _object(name=_TEXT, age=_NUMBER), "Anna is 31 years old. Answer in JSON.", "31"),
    ("enumeration", _object(colour=_COLOUR), "What colour is grass? Answer in JSON.", "green"),
    (
        "list of objects",
        _object(people={"type": "array", "items": _object(name=_TEXT, age=_NUMBER)}),
        "Bob is 9 and Eve is 12. List them in JSON.",
        "eve",
    ),
    ("boolean", _object(is_even={"type": "boolean"}), "Is 4 an even number? Answer in JSON.", "true"),
)


def checks() -> Iterator[Check]:
    for prompt, word in _OBJECTS:
        yield _check(f"json_object: {prompt}", partial(_any_object, prompt=prompt, word=word))
    for name, schema, prompt, word in _SCHEMAS:
        yield _check(f"json_schema: {name}", partial(_of_schema, schema=schema, prompt=prompt, word=word))
    yield _check("json_schema, not strict", lambda peer: _of_schema(peer, *_SCHEMAS[0][1:], is_strict=False))
    yield _check("json_schema in a stream", _streamed)


def _check(name: str, run: Callable[[Peer], None]) -> Check:
    def able(peer: Peer) -> None:
        if peer.capabilities is not None and "structured_outputs" not in peer.capabilities:
            raise NotApplicable("the model has no structured outputs")
        run(peer)

    return Check(GROUP, name, able)


def _any_object(peer: Peer, prompt: str, word: str) -> None:
    _right(peer.chat(prompt, response_format={"type": "json_object"}), {"type": "object"}, word)


def _of_schema(peer: Peer, schema: dict[str, Any], prompt: str, word: str, *, is_strict: bool = True) -> None:
    _right(peer.chat(prompt, response_format=_format(schema, is_strict=is_strict)), schema, word)


def _streamed(peer: Peer) -> None:
    _, schema, prompt, word = _SCHEMAS[1]
    _right(peer.stream(prompt, response_format=_format(schema, is_strict=True)), schema, word)


def _format(schema: dict[str, Any], *, is_strict: bool) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": is_strict, "schema": schema}}


def _right(reply: Reply, schema: dict[str, Any], word: str) -> None:
    expect(reply.finish != "length", f"JSON that does not end: {reply}")
    try:
        value = json.loads(reply.text)
    except ValueError:
        value = None
        promise(False, f"no JSON: {reply}")
    wrong = misfit(value, schema)
    promise(not wrong, f"{wrong}: {reply}")
    expect(word in json.dumps(value).lower(), f"no {word!r}: {reply}")
