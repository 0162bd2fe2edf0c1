"""What is left of a schema without the keywords that no grammar enforces.

A tool that is not `strict` only describes its arguments. If a call of it is required, the call is enforced, and of its
schema what can be enforced. The same holds for an answer with a schema that is not strict.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from gateway.worker.grammar.schema_shape import Schema, rewritten

_UNENFORCEABLE = frozenset(
    (
        "not",
        "if",
        "then",
        "else",
        "uniqueItems",
        "contains",
        "minContains",
        "maxContains",
        "propertyNames",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "unevaluatedItems",
        "unevaluatedProperties",
    )
)
_ANY_OBJECT: Schema = {"type": "object"}


def loosened(schema: Schema, is_refused: Callable[[Schema], bool]) -> Schema:
    """The narrowest schema found that is accepted: without some keywords, refused patterns, then refused properties.

    Args:
        schema: of a tool's arguments, or of an answer.
        is_refused: True if a schema cannot be a grammar.
    """
    widest = {"type": schema.get("type") or "object"}
    return next((found for found in _candidates(schema, is_refused) if not is_refused(found)), widest)


def _candidates(schema: Schema, is_refused: Callable[[Schema], bool]) -> Iterator[Schema]:
    loose = rewritten(schema, _without_keywords)
    yield loose
    loose = rewritten(loose, lambda inner: _without_refused_pattern(inner, is_refused))
    yield loose
    properties = loose.get("properties")
    if isinstance(properties, dict):
        shared = {key: value for key, value in loose.items() if key in ("$defs", "definitions")}
        kept = {
            name: {} if is_refused({**shared, **_ANY_OBJECT, "properties": {name: inner}}) else inner
            for name, inner in properties.items()
        }
        yield loose | {"properties": kept}
        yield {**_ANY_OBJECT, "properties": {name: {} for name in properties}, "required": loose.get("required", [])}


def _without_keywords(schema: Schema) -> Schema:
    kept = {key: value for key, value in without_idle_keywords(schema).items() if key not in _UNENFORCEABLE}
    if kept.get("format") == "regex":
        del kept["format"]
    if "anyOf" not in kept and "oneOf" in kept:  # a grammar takes one that excludes the others
        kept["anyOf"] = kept.pop("oneOf")
    return kept


def _without_refused_pattern(schema: Schema, is_refused: Callable[[Schema], bool]) -> Schema:
    if "pattern" not in schema or not is_refused({"type": "string", "pattern": schema["pattern"]}):
        return schema
    return {key: value for key, value in schema.items() if key != "pattern"}


def without_idle_keywords(schema: Schema) -> Schema:
    """The schema without keywords that say nothing, or that another keyword says as well."""
    idle = {
        "if": schema.keys().isdisjoint(("then", "else")),
        "then": "if" not in schema,
        "else": "if" not in schema,
        "minContains": "contains" not in schema,
        "maxContains": "contains" not in schema,
        "dependentRequired": schema.get("dependentRequired") == {},
        "dependentSchemas": schema.get("dependentSchemas") == {},
        "dependencies": schema.get("dependencies") == {},
        "unevaluatedProperties": schema.get("unevaluatedProperties") is True or "additionalProperties" in schema,
        "unevaluatedItems": schema.get("unevaluatedItems") is True,
        "uniqueItems": schema.get("uniqueItems") is False or schema.get("maxItems") in (0, 1),
    }
    kept = {key: value for key, value in schema.items() if not idle.get(key, False)}
    is_alone = kept.keys().isdisjoint(("$ref", "allOf", "anyOf", "oneOf", "additionalProperties", "if"))
    if is_alone and "unevaluatedProperties" in kept:
        kept["additionalProperties"] = kept.pop("unevaluatedProperties")
    return without_property_names(kept)


def without_property_names(schema: Schema) -> Schema:
    """The schema without a `propertyNames` that another keyword says as well, else the schema itself."""
    names = schema.get("propertyNames")
    rest = {key: value for key, value in schema.items() if key != "propertyNames"}
    if names is True:
        return rest
    if not isinstance(names, dict):
        return schema
    if names.get("type", "string") not in ("string", ["string"]):
        return schema
    rules = names.keys() - {"title", "description", "$comment", "$schema", "type"}
    if not rules:
        return rest
    if not rest.keys().isdisjoint(("properties", "patternProperties")) or rest.get("additionalProperties") is False:
        return schema
    value = rest.get("additionalProperties", True)
    closed = rest | {"additionalProperties": False}
    if rules == {"pattern"} and isinstance(names.get("pattern"), str):
        return closed | {"patternProperties": {names["pattern"]: value}}
    if isinstance(found := _names(names), list) and rules in ({"enum"}, {"const"}):
        return closed | {"patternProperties": {f"^({'|'.join(map(re.escape, found))})$": value}}
    return schema


def _names(names: Schema) -> Any:
    values = [names["const"]] if "const" in names else names.get("enum")
    return values if isinstance(values, list) and values and all(isinstance(each, str) for each in values) else None
