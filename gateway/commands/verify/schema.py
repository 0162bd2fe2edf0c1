"""Compares a value with a small JSON schema: the keywords that the checks use."""

from __future__ import annotations

from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def misfit(value: Any, schema: dict[str, Any], at: str = "$") -> str:
    """What is wrong with `value`; "" if it fits."""
    kind = schema.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return f"{at} is no {kind}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{at} is none of {schema['enum']}"
    if isinstance(value, list):
        return next(filter(None, (misfit(each, schema.get("items", {}), f"{at}[]") for each in value)), "")
    return _object_misfit(value, schema, at) if isinstance(value, dict) else ""


def _object_misfit(value: dict[str, Any], schema: dict[str, Any], at: str) -> str:
    properties = schema.get("properties", {})
    if missing := [name for name in schema.get("required", ()) if name not in value]:
        return f"{at} lacks {missing[0]}"
    if schema.get("additionalProperties") is False and (other := set(value) - set(properties)):
        return f"{at} has {min(other)!r}"
    faults = (misfit(value[name], properties[name], f"{at}.{name}") for name in properties if name in value)
    return next(filter(None, faults), "")
