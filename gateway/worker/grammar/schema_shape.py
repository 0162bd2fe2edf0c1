"""The types of all keywords of a JSON schema. Checked first, so that later code can rely on them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Schema = dict[str, Any]
Path = tuple[str | int, ...]

DEFINITIONS = ("$defs", "definitions")
_SCHEMA_MAPS = ("properties", "patternProperties", *DEFINITIONS)
_SCHEMA_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
_SCHEMAS = ("items", "additionalProperties", "additionalItems")
_UPPER = ("maxLength", "maxItems", "maxProperties")
_REACHED = 10**9  # more characters than any answer has


class SchemaError(Exception):
    """The error in a schema or in another grammar. `path`: where it is in the schema; None if that is not known."""

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message if path is None else f"at '{_pointer(path)}': {message}")


def check_shape(schema: Any) -> None:
    """Raise SchemaError for a keyword of the wrong type, and for a schema that is no object.

    Unknown keywords are left to the library. It refuses them, or ignores annotations.
    """
    for path, inner in subschemas(schema):
        if not isinstance(inner, dict):
            raise SchemaError(f"a JSON schema is an object, not {json.dumps(inner)[:60]}", path)
        for key, value in inner.items():
            if (rule := _RULES.get(key)) and not rule[1](value):
                raise SchemaError(f"'{key}' must be {rule[0]}, not {json.dumps(value)[:60]}", (*path, key))


def subschemas(schema: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """All inner schemas except true and false, and last the schema itself."""
    if isinstance(schema, dict):
        for step, inner in inner_schemas(schema):
            if not isinstance(inner, bool):
                yield from subschemas(inner, (*path, *step))
    yield path, schema


def inner_schemas(schema: Schema) -> Iterator[tuple[Path, Any]]:
    """The schemas directly inside `schema`, each with its path from there. Definitions can also be other values."""
    for key, value in schema.items():
        if key in DEFINITIONS and isinstance(value, dict):
            yield from (((key, name), inner) for name, inner in value.items() if isinstance(inner, dict))
        elif key in _SCHEMA_MAPS and isinstance(value, dict):
            yield from (((key, name), inner) for name, inner in value.items())
        elif key in _SCHEMA_LISTS and isinstance(value, list):
            yield from (((key, index), inner) for index, inner in enumerate(value))
        elif key in _SCHEMAS:
            yield (key,), value


def rewritten(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """A copy with `change` applied to each schema, inner ones first."""

    def rewrite(key: str, value: Any) -> Any:
        if key in _SCHEMA_MAPS and isinstance(value, dict):
            return {name: inside(inner) for name, inner in value.items()}
        if key in _SCHEMA_LISTS and isinstance(value, list):
            return [inside(inner) for inner in value]
        return inside(value) if key in _SCHEMAS else value

    def inside(value: Any) -> Any:
        return rewritten(value, change) if isinstance(value, dict) else value

    return change({key: rewrite(key, value) for key, value in schema.items()})


def without_odd_values(schema: Schema) -> Schema:
    """The schema without keywords that are null (programs in Go write them), and with counts as integers.

    An upper limit that no answer reaches is left out: programs write the largest integer of their language.
    """
    kept = {key: value for key, value in schema.items() if value is not None or not _has_rule(key)}
    counts = {key: int(value) for key, value in kept.items() if _RULES.get(key) is _COUNT and _is_count(value)}
    return {key: value for key, value in (kept | counts).items() if key not in _UPPER or counts.get(key, 0) <= _REACHED}


def _has_rule(key: str) -> bool:
    return key in _RULES or key in _SCHEMAS


def _pointer(path: Path) -> str:
    return "#" + "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')[:100]}" for step in path)


# -- the types ---------------------------------------------------------------------------------------------------------


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_string, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and value >= 0 and value == value // 1


_Rule = tuple[str, Callable[[Any], bool]]
_STRING: _Rule = ("a string", _is_string)
_COUNT: _Rule = ("an integer of at least 0", _is_count)
_NUMBER: _Rule = ("a number", _is_number)
_LIMIT: _Rule = ("a number or a boolean", lambda value: isinstance(value, int | float))  # a boolean: draft 4
_LIST: _Rule = ("a list", lambda value: isinstance(value, list))
_OBJECT: _Rule = ("an object", lambda value: isinstance(value, dict))

#: keyword -> what its value must be. The schemas inside are checked where they are.
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("$ref", "$id", "id", "$schema", "$anchor", "format", "pattern"), _STRING),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _COUNT),
    **dict.fromkeys(("minimum", "maximum", "multipleOf"), _NUMBER),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), _LIMIT),
    **dict.fromkeys(("enum", "anyOf", "allOf", "oneOf", "prefixItems"), _LIST),
    **dict.fromkeys(_SCHEMA_MAPS, _OBJECT),
    "required": ("a list of strings", _is_list_of_strings),
    "type": ("a string or a list of strings", lambda value: _is_string(value) or _is_list_of_strings(value)),
    "uniqueItems": ("a boolean", lambda value: isinstance(value, bool)),
}
