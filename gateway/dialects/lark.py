"""Builds grammars in llguidance's Lark for constrained decoding of tool calls.

A grammar for one required call of the tool `f` in the Hermes dialect:

    start: "<tool_call>" "\\n" call "\\n" "</tool_call>"
    call: call_0
    call_0: "{" "\\"name\\"" ": " "\\"f\\"" ", " "\\"arguments\\"" ": " arguments_0 "}"
    arguments_0: %json {"type": "object", "properties": {...}}

Functions that return "the right side of a rule" return the text behind the colon.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from gateway.dialects.base import Terminal
from gateway.generation import TOOL, Grammar, Tool

#: (tool name, name of the rule for its arguments) -> right side of the rule for one call.
CallRule = Callable[[str, str], str]

_ANY_OBJECT = {"type": "object"}
_TO_ESCAPE = re.compile(r"\\.|/|\n", re.DOTALL)
_TEXT = "TEXT: /(.|\\n)*/"


def literal(value: str) -> str:
    """A Lark string literal."""
    return json.dumps(value)


def repeated(item: str, separator: str, *, single: bool) -> str:
    """The right side of a rule for one `item`, or for one or more with `separator` between them."""
    between = f"{literal(separator)} " if separator else ""
    return item if single else f"{item} ({between}{item})*"


def calls_or_end(calls: str, before_next: str) -> str:
    """The right side of a rule for one or more calls, after which the model can write what it likes.

    The parser ends the answer there. Without this, a model that would write text is made to write a call: the line
    break before both is much more likely than the end. Whitespace is limited, or it could go on to `max_tokens`.

    Args:
        calls: the right side of a rule for one or more calls.
        before_next: the first character that begins the next call, whitespace left out.
    """
    return rf"{calls} (/\s{{0,8}}[^\s{re.escape(before_next)}](.|\n)*/)?"


def array_of_calls(*, single: bool) -> str:
    """The right side of a rule for a JSON array of the rule `call`."""
    return f'"[" {repeated("call", ", ", single=single)} "]"'


def json_call(name: str, arguments: str, key: str) -> str:
    """The right side of a rule for a call as a JSON object.

    It is cut into the same pieces as JSON, so that an answer in JSON can begin with the same tokens as a call.
    """
    pieces = ("{", '"name"', ": ", literal(name), ", ", literal(key), ": ")
    return f'{" ".join(map(literal, pieces))} {arguments} "}}"'


def call_rules(tools: Sequence[Tool], call: CallRule, *, all_strict: bool) -> str:
    """Rules for `call`: a call of any of `tools`.

    Args:
        tools: the tools that may be called.
        call: returns the right side of the rule for one tool.
        all_strict: enforce the schema of every tool's arguments, not only that of strict tools.
    """
    names = [f"call_{i}" for i in range(len(tools))]
    rules = ["call: " + " | ".join(names)]
    for i, tool in enumerate(tools):
        schema = _arguments(tool) if all_strict or tool.strict else _ANY_OBJECT
        rules.append(f"call_{i}: {call(tool.name, f'arguments_{i}')}")
        rules.append(f"arguments_{i}: %json {msgspec.json.encode(schema).decode()}")
    return "\n".join(rules)


def _arguments(tool: Tool) -> dict[str, Any]:
    """A tool with an empty `properties` takes no arguments. Without this, models invent some."""
    own = {TOOL: {"name": tool.name, "strict": tool.strict}}
    closed = {"additionalProperties": False} if tool.parameters.get("properties") == {} else {}
    return closed | tool.parameters | own


def answer_rule(answer: Grammar) -> str:
    """The rule `answer`: text that matches a JSON schema or a regular expression."""
    match answer.kind:
        case "json_object":
            return f"answer: %json {json.dumps(_ANY_OBJECT)}"
        case "json_schema":
            return f"answer: %json {answer.source}"
        case _:
            return f"answer: /{_TO_ESCAPE.sub(_escape, answer.source)}/"


def _escape(found: re.Match[str]) -> str:
    return {"/": "\\/", "\n": "\\n"}.get(found[0], found[0])


def whole_output(wanted: str, rules: str, terminal: Terminal, *, thought: str | None) -> str:
    """A grammar for an output that is `wanted`. If the prompt opens the reasoning, free reasoning comes first."""
    if thought is None:
        return f"start: {wanted}\n{rules}"
    return f"start: thought {wanted}\n{_up_to('thought', thought, terminal)}\n{_TEXT}\n{rules}"


def text_with_calls(marker: str, section: str, rules: str, terminal: Terminal) -> str:
    """A grammar for free text in which `section` follows each `marker`."""
    return f"start: (lead {section})* rest\nrest: TEXT\n{_up_to('lead', marker, terminal)}\n{_TEXT}\n{rules}"


def calls_or_text(calls: str, rules: str) -> str:
    """A grammar for calls without a marker, or for text that does not begin with `{`."""
    return f"start: {calls} | rest\nrest: OTHER?\nOTHER: /[^{{\\s](.|\\n)*/\n{rules}"


def _up_to(rule: str, marker: str, terminal: Terminal) -> str:
    """A rule for free text up to and including the first `marker`."""
    written = terminal(marker)
    if written == literal(marker):
        return f"{rule}[lazy]: TEXT {written}"
    return f"{rule}: TEXT {written}"  # free text contains no special token, so the match need not be lazy
