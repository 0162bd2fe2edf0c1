"""Prepares JSON schemas for llguidance, so that each complete answer validates.

The library takes most of JSON Schema as it is, and refuses keywords that it cannot enforce. The changes to a schema
before, and the reasons:

1. Whitespace is fixed: `{"a": 1, "b": [2]}`, as most tools write JSON on one line. At a high temperature a model would
   write spaces until `max_tokens`. Fixed whitespace is also forced, so several tokens go into one device call.
2. A schema with `properties` is an object without other properties, and a schema with items is an array, unless the
   schema has more keywords: models invent properties without end. This makes the schema narrower. It is not done if
   schemas are combined, because a narrower schema could then contradict another one.
3. Formats that the library does not know or checks loosely (29 February, second 60) become patterns. Formats that JSON
   Schema does not define are annotations, as in the standard.
4. Keywords that the library would take and not enforce are refused: constants with more digits than a double, and a
   `minProperties` that repeated keys could satisfy. Limits that it cannot hold become wider.
5. A keyword that is null is left out, and so is an upper limit of a count that no answer reaches.
6. `propertyNames` without a rule is left out, and one with a pattern or a list of names becomes `patternProperties`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from gateway.errors import LONGEST_QUOTE, quote
from gateway.worker.grammar.loose_schema import without_idle_keywords
from gateway.worker.grammar.numbers import with_wider_limits
from gateway.worker.grammar.schema_shape import (
    Path,
    Schema,
    SchemaError,
    check_shape,
    rewritten,
    subschemas,
    without_odd_values,
)

#: The value of `x-guidance`: llguidance's compile options in a schema.
OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

_NUMBERS = ("const", "enum", "multipleOf")
_EXACT = 2**53  # integers up to it are doubles

_LEAP_YEAR = r"(\d\d(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_YEAR = r"([1-9]\d{3}|0[1-9]\d\d|00[1-9]\d|000[1-9])"
_DATE = (
    rf"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
    rf"|{_LEAP_YEAR}-02-29)"
)
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_JSON_POINTER = r"(/([^~/]|~[01])*)*"
_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "json-pointer": _JSON_POINTER,
    "relative-json-pointer": rf"(0|[1-9]\d*)(#|{_JSON_POINTER})",
}
#: format -> a format that the library knows and whose values are a subset
_NARROWER = {
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
    "iri-reference": "uri",
    "uri-reference": "uri",
    "uri-template": "uri",
}
_SUPPORTED_FORMATS = frozenset(("duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"))
_UNENFORCEABLE = frozenset(["regex"])  # in the standard, but no grammar can enforce it


def prepare(schema: Any) -> Schema:
    """The schema for llguidance, with its options. Raises SchemaError for a keyword that cannot be enforced."""
    if schema is False:
        raise SchemaError("nothing matches the schema `false`", ())
    if schema is True:
        schema = {}
    try:
        if isinstance(schema, dict):
            schema = rewritten(schema, without_odd_values)
        check_shape(schema)
        schemas = list(subschemas(schema))
        combined = any(_is_combined(inner) for _, inner in schemas)
        _check_multiples([(path, inner["multipleOf"]) for path, inner in schemas if "multipleOf" in inner])
        for path, inner in schemas:
            _check_reference(schema, inner, path)
            _check_kept(inner, path)
        prepared = rewritten(schema, lambda inner: _prepared(inner, close=not combined))
    except RecursionError:
        raise SchemaError("it is nested too deeply") from None
    return prepared | {"x-guidance": OPTIONS}


def _is_combined(schema: Schema) -> bool:
    """True if a closed object in this schema could match nothing, or too much."""
    if "allOf" in schema or "oneOf" in schema:
        return True
    return "properties" in schema and not schema.keys().isdisjoint(("$ref", "anyOf"))


def _prepared(schema: Schema, *, close: bool) -> Schema:
    schema.pop("x-guidance", None)
    schema = with_wider_limits(without_idle_keywords(schema))
    if "format" in schema:
        schema = _with_kept_format(schema)
    if close and _lists_its_properties(schema):
        schema["additionalProperties"] = False
    return schema | _implied_type(schema) if close else schema


def _implied_type(schema: Schema) -> Schema:
    if not schema.keys().isdisjoint(("type", "const", "enum", "$ref", "anyOf")):
        return {}
    if "properties" in schema:
        return {"type": "object"}
    return {"type": "array"} if "items" in schema or "prefixItems" in schema else {}


def _lists_its_properties(schema: Schema) -> bool:
    properties, required = schema.get("properties"), schema.get("required", [])
    if not properties:
        return False
    others = ("additionalProperties", "patternProperties", "minProperties")
    return schema.keys().isdisjoint(others) and all(name in properties for name in required)


def _with_kept_format(schema: Schema) -> Schema:
    name = schema["format"]
    if name in _PATTERNS:
        rest = {key: value for key, value in schema.items() if key != "format"}
        kept = {"pattern": f"^{_PATTERNS[name]}$"}
        return rest | {"allOf": [*rest.get("allOf", []), kept]} if "pattern" in rest else kept | rest
    if name in _SUPPORTED_FORMATS:
        return schema
    if name in _NARROWER:
        return schema | {"format": _NARROWER[name]}
    return {key: value for key, value in schema.items() if key != "format"}


def _check_kept(schema: Schema, path: Path) -> None:
    """Raises SchemaError for a keyword that the library takes, but does not enforce."""
    if schema.get("format") in _UNENFORCEABLE:
        raise SchemaError(f"the format {quote(schema['format'])} cannot be enforced", path)
    fixed = len(schema.get("required", []))
    if schema.get("minProperties", 0) > fixed + 1:
        raise SchemaError(
            f"'minProperties' cannot be above the number of required properties plus one ({fixed + 1})", path
        )
    for key in _NUMBERS:
        for number in _numbers(schema.get(key)):
            if not _is_exact(number):
                raise SchemaError(
                    f"the number {str(number)[:LONGEST_QUOTE]} has more digits than a double", (*path, key)
                )


def _check_multiples(found: list[tuple[Path, Any]]) -> None:
    """Raises SchemaError if a `multipleOf`, or a common multiple of several, exceeds the library's 32 bits."""
    scaled = []
    for path, multiple in found:
        if not 0 < abs(multiple) < 2**32:
            continue  # the library refuses it
        integer, decimals = abs(float(multiple)), 0
        while integer != int(integer):  # the library's own algorithm
            integer, decimals = integer * 10, decimals + 1
        if Fraction(int(integer), 10**decimals) != abs(Fraction(str(multiple))):
            raise SchemaError(f"the number {multiple} has no exact representation", (*path, "multipleOf"))
        scaled.append((int(integer), decimals))
    most_decimals = max((decimals for _, decimals in scaled), default=0)
    multiples = {integer * 10 ** (most_decimals - decimals) for integer, decimals in scaled}
    common = 1
    for multiple in multiples if len(scaled) > 1 else ():
        common = math.lcm(common, multiple)
        if common * max(multiples) >= 2**32:
            raise SchemaError("its 'multipleOf' numbers are too large together", ())


def _numbers(value: Any) -> Iterator[int | float]:
    match value:
        case bool():
            pass
        case int() | float():
            yield value
        case list():
            for item in value:
                yield from _numbers(item)
        case dict():
            yield from _numbers(list(value.values()))


def _is_exact(number: int | float) -> bool:
    """True if the number is a double that the library writes with the same value."""
    if isinstance(number, int) and abs(number) <= _EXACT:
        return True
    try:
        return math.isfinite(number) and float(f"{number:.15g}") == number
    except OverflowError:
        return False


def _check_reference(root: Schema, schema: Schema, path: Path) -> None:
    """Raises SchemaError for a `$ref` to another document or to a missing part. The library checks anchors."""
    target = schema.get("$ref")
    if target is None:
        return
    if not target.startswith("#"):
        if "$id" in root and not target.startswith(("http:", "https:")):
            return  # relative to the document's own `$id`
        raise SchemaError(f"the reference {quote(target)} is outside the schema, and the gateway fetches nothing", path)
    if target.startswith("#/") and not _exists(root, unquote(target[2:]).split("/")):
        raise SchemaError(f"there is nothing at {quote(target)}", (*path, "$ref"))


def _exists(node: Any, steps: list[str]) -> bool:
    for step in steps:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and step in node:
            node = node[step]
        elif isinstance(node, list) and step.isdecimal() and len(step) < 10 and int(step) < len(node):
            node = node[int(step)]
        else:
            return False
    return True
