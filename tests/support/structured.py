"""Twenty nested schemas, answers to them from a real model, and an independent validator."""

from __future__ import annotations

import asyncio
import datetime
import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

from gateway.engines.base import Engine
from gateway.generation import (
    Chat,
    ChoiceFinished,
    Finished,
    FinishReason,
    Generation,
    Grammar,
    Message,
    TextDelta,
)
from gateway.sampling import Sampling
from tests.support.engines import events_of

Schema = dict[str, Any]

NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 30}
WORD: Schema = {"type": "string", "pattern": "^[a-z]{2,12}$"}


def schema_grammar(schema: Schema | bool) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(schema), param="p")


def lark(source: str) -> Grammar:
    return Grammar(kind="lark", source=source, param="p")


def regex(source: str) -> Grammar:
    return Grammar(kind="regex", source=source, param="p")


def closed(required: list[str] | None = None, **properties: Any) -> Schema:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def some(items: Schema, minimum: int, maximum: int) -> Schema:
    return {"type": "array", "items": items, "minItems": minimum, "maxItems": maximum}


SCHEMAS: dict[str, Schema] = {
    "person": closed(name=NAME, age={"type": "integer", "minimum": 0, "maximum": 130}, married={"type": "boolean"}),
    "event": closed(
        title=NAME,
        starts={"type": "string", "format": "date-time"},
        attendees=some(closed(name=NAME, email={"type": "string", "format": "email", "maxLength": 40}), 1, 3),
    ),
    "order": closed(
        id={"type": "string", "format": "uuid"},
        state={"enum": ["new", "paid", "shipped", 'lost "in" transit']},
        lines=some(
            closed(sku={"type": "string", "pattern": "^[A-Z]{3}-\\d{4}$"}, count={"type": "integer", "minimum": 1}),
            1,
            4,
        ),
    ),
    "shape": {
        "anyOf": [
            closed(kind={"const": "circle"}, radius={"type": "number", "exclusiveMinimum": 0}),
            closed(kind={"const": "rectangle"}, size=some({"type": "number"}, 2, 2)),
            closed(kind={"const": "text"}, value=NAME, bold={"type": ["boolean", "null"]}),
        ]
    },
    "tree": {
        "$defs": {"node": closed(label=WORD, children=some({"$ref": "#/$defs/node"}, 0, 2))},
        "$ref": "#/$defs/node",
    },
    "linked list": {
        "$defs": {
            "link": closed(value={"type": "integer"}, next={"anyOf": [{"$ref": "#/$defs/link"}, {"type": "null"}]})
        },
        "$ref": "#/$defs/link",
    },
    "matrix": closed(rows=some(some({"type": "integer", "minimum": -9, "maximum": 9}, 2, 2), 2, 2)),
    "constants": closed(version={"const": 1.5}, kind={"const": None}, tags={"const": ["a", {"b": [True]}]}),
    "mixed enum": closed(choice={"enum": [1, 2.5, "three", None, True, [4], {"five": 5}]}),
    "address": {
        "$defs": {
            "country": {"type": "string", "enum": ["DE", "FR", "IT", "US"]},
            "address": closed(
                street=NAME, zip={"type": "string", "pattern": "^\\d{5}$"}, country={"$ref": "#/$defs/country"}
            ),
        },
        **closed(home={"$ref": "#/$defs/address"}, work={"anyOf": [{"$ref": "#/$defs/address"}, {"type": "null"}]}),
    },
    "optional": closed(["a"], a={"type": "integer"}, b={"type": "boolean"}, c=WORD, d=closed(["y"], x=WORD, y=WORD)),
    "tuple": {
        "type": "array",
        "prefixItems": [NAME, {"type": "integer"}, closed(ok={"type": "boolean"})],
        "items": False,
        "minItems": 3,
    },
    "map": {
        "type": "object",
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 99},
        "minProperties": 1,
        "maxProperties": 3,
    },
    "merged": {
        "allOf": [
            {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
            {
                "type": "object",
                "properties": {"id": {"minimum": 10, "maximum": 99}, "name": NAME},
                "required": ["name"],
            },
            {"additionalProperties": False, "properties": {"id": True, "name": True}},
        ]
    },
    "numbers": closed(
        share={"type": "number", "minimum": 0, "maximum": 1},
        even={"type": "integer", "multipleOf": 2, "minimum": -100, "maximum": 100},
        price={"type": "number", "minimum": 0, "maximum": 1000, "multipleOf": 0.01},
    ),
    "network": closed(
        address={"anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]},
        host={"type": "string", "format": "hostname", "maxLength": 30},
        port={"type": "integer", "minimum": 1, "maximum": 65535},
    ),
    "calendar": closed(
        day={"type": "string", "format": "date"},
        at={"type": "string", "format": "time"},
        lasts={"type": "string", "format": "duration", "maxLength": 12},
    ),
    "unicode": {
        "type": "object",
        "properties": {
            "naïve key": {"enum": ["été", "日本語", "🙂", 'tab\tquote"back\\slash']},
            "": {"const": "\n"},
        },
        "required": ["naïve key", ""],
        "additionalProperties": False,
    },
    "deep": closed(a=closed(b=closed(c=closed(d=some(closed(e={"type": "null"}), 1, 2))))),
    "report": closed(
        summary={"type": "string", "maxLength": 60},
        sections=some(
            closed(
                heading=NAME,
                level={"type": "integer", "enum": [1, 2, 3]},
                body={"anyOf": [{"type": "string", "maxLength": 40}, some(WORD, 1, 3), {"type": "null"}]},
            ),
            1,
            2,
        ),
    ),
}


def _is_date_time(text: object) -> bool:
    return not isinstance(text, str) or datetime.datetime.fromisoformat(text).tzinfo is not None


def _is_time(text: object) -> bool:
    return not isinstance(text, str) or datetime.time.fromisoformat(text).tzinfo is not None


def _is_relative_json_pointer(text: object) -> bool:
    """The validator's own function refuses a number with a zero in the middle."""
    return not isinstance(text, str) or bool(re.fullmatch(r"(?:0|[1-9][0-9]*)(?:#|(?:/(?:[^/~]|~[01])*)*)", text))


formats = FormatChecker()
formats.checks("relative-json-pointer")(_is_relative_json_pointer)
formats.checks("date-time", raises=ValueError)(_is_date_time)
formats.checks("time", raises=ValueError)(_is_time)


def faults(schema: Schema, text: str) -> list[str]:
    """The errors of an independent validator; empty if the answer validates.

    Numbers are decimals, because as a double 36.09 is not a multiple of 0.01.
    """
    try:
        value = json.loads(text, parse_float=_exact, parse_constant=_refuse)
    except ValueError as error:
        return [f"not JSON: {error}"]
    exact = json.loads(json.dumps(schema), parse_float=_exact)
    return [error.message for error in Draft202012Validator(exact, format_checker=formats).iter_errors(value)]


def _exact(number: str) -> Decimal | float:
    try:
        return Decimal(number) if math.isfinite(float(number)) else float(number)
    except InvalidOperation:  # a smaller exponent than a Decimal has
        return float(number)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


@dataclass(frozen=True)
class Answer:
    name: str
    seed: int
    text: str
    reason: FinishReason
    tokens: int

    @property
    def faults(self) -> list[str]:
        """The errors of a complete answer. An answer that was cut has none."""
        return faults(SCHEMAS[self.name], self.text) if self.reason == "stop" else []


async def answers(
    engine: Engine, count: int, *, at_once: int = 4, temperature: float = 1.5, max_tokens: int = 256
) -> list[Answer]:
    """`count` answers to the schemas in turn, each with its own seed."""
    todo = iter(range(count))
    names = list(SCHEMAS)

    async def work() -> list[Answer]:
        return [await ask(engine, names[i % len(names)], i, temperature, max_tokens) for i in todo]

    return [answer for worked in await asyncio.gather(*(work() for _ in range(at_once))) for answer in worked]


async def ask(engine: Engine, name: str, seed: int, temperature: float, max_tokens: int) -> Answer:
    text, tokens = "", 0
    reason: FinishReason = "length"
    for event in await events_of(engine, request(name, seed, temperature, max_tokens)):
        match event:
            case TextDelta():
                text += event.text
            case ChoiceFinished():
                reason = event.reason
            case Finished():
                tokens = event.usage.completion_tokens
    return Answer(name, seed, text, reason, tokens)


def request(name: str, seed: int, temperature: float, max_tokens: int) -> Generation:
    return Generation(
        id=f"{name} {seed}",
        model="m",
        prompt=Chat(messages=(Message(role="user", content=f"Write a {name} as JSON."),)),
        sampling=Sampling(temperature=temperature, seed=seed),
        max_tokens=max_tokens,
        grammar=schema_grammar(SCHEMAS[name]),
    )
