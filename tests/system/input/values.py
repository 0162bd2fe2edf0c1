"""Values that fit a field's type, values that do not, and bodies around them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st
from msgspec import inspect as types

Step = str | int

#: The smallest valid value of a struct whose fields must fit each other.
SMALLEST: dict[str, dict[str, Any]] = {
    "ContentPart": {"type": "text", "text": "x"},
    "InputPart": {"type": "input_text", "text": "x"},
    "ToolDefinition": {"type": "function", "function": {"name": "f"}},
    "ResponseTool": {"type": "function", "name": "f"},
    "NamedChoice": {"type": "function", "function": {"name": "f"}},
    "JsonSchema": {"name": "s", "schema": {"type": "object"}},
    "ResponseFormat": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}, "name": "s", "schema": {}},
    "ContentBlock": {"type": "text", "text": "x"},
    "InputItem": {"role": "user", "content": "x"},
    "OutputFormat": {"type": "json_schema", "schema": {"type": "object"}},
}


class Raw(str):
    """Text that `encoded` writes as it is, because Python's JSON encoder cannot write it."""


RAW = ("NaN", "-Infinity", "1e999", "-0", "01", "1.", '"\\ud800"', '"\\udc00\\ud800"', '{"a":1,"a":2}', "-", '"\t"', "")
DEEP: Any = 1
for _ in range(80):
    DEEP = {"a": [DEEP]}
HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**400),
    *(1e308, -1e308, 5e-324, -0.0, 0.1, 1.5),
    *("", " ", "\0", "\n", "a" * 5_000, "é\u2028\u202e👩\u200d👩\u200d👧", "\ufeff", "\ufffe"),
    *("<|im_start|>system", "<tool_call>", "{{ 7 * 7 }}", "{% for x in y %}", "%s%n", "../../etc/passwd", "$ref"),
    *([], {}, [[]], [None], [{}], ["a"] * 100, [0] * 100, {"": None}, {"a": 1}, {"\0": {"é": [[]]}}, DEEP),
    *({"a": 10**400}, {"type": "integer", "maximum": 10**30}, {"enum": [2**64]}),
    *({"type": "object"}, {"type": "text"}, {"type": "function", "function": {"name": "f"}}, {"$ref": "#"}),
    *({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, {"type": "x" * 1000}, {"name": "f", "type": "f"}),
    *(Raw(text) for text in RAW),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def unwrapped(type_: types.Type) -> types.Type:
    """The type without its limits."""
    while isinstance(type_, types.Metadata):
        type_ = type_.type
    return type_


def fitting(type_: types.Type, depth: int = 3) -> st.SearchStrategy[Any]:
    """Values of the type, most of them within its limits."""
    match unwrapped(type_):
        case types.StructType() as struct if depth:
            return st.builds(
                lambda given, base: base | given,
                st.fixed_dictionaries(
                    {}, optional={each.encode_name: fitting(each.type, depth - 1) for each in struct.fields}
                ),
                st.just(smallest(struct)),
            )
        case (
            types.ListType(item_type=item, min_length=shortest)
            | types.VarTupleType(item_type=item, min_length=shortest)
        ):
            return st.lists(fitting(item, depth), min_size=shortest or 0, max_size=3)
        case types.DictType(key_type=key, value_type=value):
            keys = fitting(key, depth).map(str)
            return st.dictionaries(keys, fitting(value, depth), max_size=3)
        case types.UnionType(types=kinds):
            return st.one_of([fitting(kind, depth) for kind in kinds])
        case types.LiteralType(values=values):
            return st.sampled_from(values)
        case types.BoolType():
            return st.booleans()
        case types.IntType(ge=low, le=high):
            low = -(2**63) if low is None else low
            return st.sampled_from([low, low + 1, high or 2**31, 1, 2, 7]) | st.integers(low, high or 2**40)
        case types.FloatType(ge=low, gt=above, le=high):
            bottom = low if low is not None else above if above is not None else -1e9
            return st.floats(bottom, high if high is not None else 1e9, exclude_min=low is None and above is not None)
        case types.StrType(pattern=str()):
            return st.sampled_from(["f", "get_weather", "a" * 64])
        case types.StrType():
            return st.text(max_size=12) | st.sampled_from(["f", "m", "text", "function", "message", "x"])
        case types.NoneType():
            return st.none()
    return json_values


def smallest(type_: types.Type) -> Any:
    """The smallest valid value of a type."""
    match unwrapped(type_):
        case types.StructType() as struct:
            if (known := SMALLEST.get(struct.cls.__name__)) is not None:
                names = {each.encode_name for each in struct.fields}
                return {name: value for name, value in known.items() if name in names}
            return {each.encode_name: smallest(each.type) for each in struct.fields if each.required}
        case types.ListType(item_type=item):
            return [smallest(item)]
        case types.UnionType(types=kinds):
            return smallest(kinds[0])
        case types.LiteralType(values=values):
            return values[0]
        case types.StrType():
            return "f"
        case types.IntType():
            return 1
        case types.DictType():
            return {}
    return None


def fields(type_: types.Type, seen: tuple[type, ...] = ()) -> Iterator[tuple[tuple[Step, ...], types.Type]]:
    """(path, type) of every field in a type, also in structs within structs."""
    match unwrapped(type_):
        case types.StructType(cls=cls) as struct if cls not in seen:
            for each in struct.fields:
                yield (each.encode_name,), each.type
                for path, kind in fields(each.type, (*seen, cls)):
                    yield (each.encode_name, *path), kind
        case types.ListType(item_type=item):
            yield from (((0, *path), kind) for path, kind in fields(item, seen))
        case types.UnionType(types=kinds):
            for kind in kinds:
                yield from fields(kind, seen)


def around(type_: types.Type, path: tuple[Step, ...], value: Any) -> Any:
    """A value of the type with `value` at `path`, and the smallest valid value of everything else."""
    if not path:
        return value
    step, *rest = path
    match unwrapped(type_):
        case types.UnionType(types=kinds):
            kind = next(kind for kind in kinds if has_step(kind, step))
            return around(kind, path, value)
        case types.ListType(item_type=item):
            return [around(item, tuple(rest), value)]
        case types.StructType() as struct:
            field = next(each for each in struct.fields if each.encode_name == step)
            return smallest(struct) | {step: around(field.type, tuple(rest), value)}
    raise AssertionError(path)


def has_step(type_: types.Type, step: Step) -> bool:
    """True if the first step of a path exists in the type."""
    match unwrapped(type_):
        case types.StructType() as struct:
            return step in {each.encode_name for each in struct.fields}
        case types.ListType():
            return step == 0
    return False


def encoded(body: Any) -> bytes:
    """A body as JSON, with `Raw` values as they are."""
    raw: list[str] = []

    def mark(value: Any) -> Any:
        match value:
            case Raw():
                raw.append(value)
                return f"@{len(raw) - 1}@"
            case dict():
                return {name: mark(inner) for name, inner in value.items()}
            case list():
                return [mark(inner) for inner in value]
        return value

    text = json.dumps(mark(body), ensure_ascii=False)
    for number, piece in enumerate(raw):
        text = text.replace(f'"@{number}@"', piece)
    return text.encode("utf-8", "surrogatepass")
