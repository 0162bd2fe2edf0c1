"""Grammars, in llguidance's Lark, for answers that must be calls or whose calls must fit their tools' schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from gateway.dialects.base import Terminal
from gateway.dialects.parser import THOUGHT
from gateway.generation import Grammar, Tool

#: One tool's call: its name, and the rule for its arguments, as the right side of a rule.
CallRule = Callable[[str, str], str]

_ANYTHING = {"type": "object"}
_unescaped_slash = re.compile(r"\\.|/|\n", re.DOTALL)
_TEXT = "TEXT: /(.|\\n)*/"


def text(value: str) -> str:
    """A string that stands in the output as it is."""
    return json.dumps(value)


def call_rules(tools: Sequence[Tool], call: CallRule, *, all_strict: bool) -> str:
    """`call`: a call of any of `tools`; the arguments fit the schema, of those that are strict or of all."""
    names = [f"call_{i}" for i in range(len(tools))]
    rules = ["call: " + " | ".join(names)]
    for i, tool in enumerate(tools):
        schema = _closed(tool.parameters) if all_strict or tool.strict else _ANYTHING
        rules.append(f"call_{i}: {call(tool.name, f'arguments_{i}')}")
        rules.append(f"arguments_{i}: %json {json.dumps(schema)}")
    return "\n".join(rules)


def _closed(parameters: dict[str, Any]) -> dict[str, Any]:
    """A function that lists no parameters takes none: models would invent some."""
    if parameters.get("properties") == {}:
        return {"additionalProperties": False, **parameters}
    return parameters


def answer_rule(answer: Grammar) -> str:
    """`answer`: what a JSON schema or a regular expression allows."""
    match answer.kind:
        case "json_object":
            return f"answer: %json {json.dumps(_ANYTHING)}"
        case "json_schema":
            return f"answer: %json {answer.source}"
        case _:
            return f"answer: /{_unescaped_slash.sub(_escape, answer.source)}/"


def _escape(found: re.Match[str]) -> str:
    return {"/": "\\/", "\n": "\\n"}.get(found[0], found[0])


def exactly(wanted: str, rules: str, terminal: Terminal, *, thinks: bool) -> str:
    """The output is `wanted` and nothing else, behind the end of the reasoning where the prompt has opened it."""
    if not thinks:
        return f"start: {wanted}\n{rules}"
    return f"start: thought {wanted}\n{_up_to('thought', THOUGHT, terminal)}\n{_TEXT}\n{rules}"


def may_call(begin: str, rest: str, rules: str, terminal: Terminal) -> str:
    """Free text in which `rest` follows wherever the marker `begin` stands."""
    return f"start: (lead {rest})* rest\nrest: TEXT\n{_up_to('lead', begin, terminal)}\n{_TEXT}\n{rules}"


def may_be_call(calls: str, rules: str) -> str:
    """Calls, or text that does not begin as one."""
    return f"start: {calls} | rest\nrest: OTHER?\nOTHER: /[^{{\\s](.|\\n)*/\n{rules}"


def _up_to(name: str, marker: str, terminal: Terminal) -> str:
    """Any text and the first `marker` in it."""
    written = terminal(marker)
    if written == text(marker):
        return f"{name}[lazy]: TEXT {written}"
    return f"{name}: TEXT {written}"  # no text spells a special token
