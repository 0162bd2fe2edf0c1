"""One configured value: where it was set, its conversion to the type of its key, and the message of a mistake in it."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import msgspec

from gateway.errors import ConfigError

#: The table of a key: () is the top of the file, ("server",), ("models", NAME), ("models", NAME, "breaker").
Table = tuple[str, ...]


#: msgspec's names of types, and its signs, in words.
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_RANGES = (
    (r"of length >= 1", "that is not empty"),
    (r">= (\S+)", r"of at least \1"),
    (r"<= (\S+)", r"of at most \1"),
    (r"> (\S+)", r"above \1"),
    (r"(\d)\.0\b", r"\1"),
)


class Setting(NamedTuple):
    """A key with a value from the file, the environment or the command line.

    Args:
        where: the start of an error message: 'config.toml: [server] port'.
        text: True if `value` is text, as in an environment variable. Commas separate the items of lists and tables.
    """

    table: Table
    key: str
    value: Any
    where: str
    text: bool = False


def convert(setting: Setting, kind: Any) -> Any:
    """The value as a `kind`. Raises ConfigError."""
    value = _from_text(setting, kind) if setting.text else setting.value
    if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _convert_table(setting, value, kind)
    if isinstance(value, dict) and (inner := _struct_of_values(kind)):
        return {name: _convert_value(setting, name, each, inner) for name, each in value.items()}
    if isinstance(value, list) and (struct := _struct_of_items(kind)):
        return tuple(_convert_item(setting, index, item, struct, kind) for index, item in enumerate(value))
    try:
        return msgspec.convert(value, kind, strict=not setting.text, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{setting.where}: {_problem(str(error), value, kind)}") from None


def _convert_table(setting: Setting, table: dict[str, Any], kind: type[msgspec.Struct]) -> msgspec.Struct:
    """A struct from a table that is the value of a key. A message names the key inside the table."""
    kinds = {item.name: item.type for item in msgspec.structs.fields(kind)}
    values = {}
    for key, value in table.items():
        inner = setting._replace(key=key, value=value, where=f"{setting.where}.{key}")
        if key not in kinds:
            hint = nearest(key, kinds) or "; there is " + ", ".join(kinds)
            raise ConfigError(f"{inner.where}: unknown key{hint}")
        values[key] = convert(inner, kinds[key])
    return kind(**values)


def _struct_of_values(kind: Any) -> type[msgspec.Struct] | None:
    """The struct in `dict[str, STRUCT]`."""
    inner = get_args(kind)[-1] if get_origin(kind) is dict else None
    return inner if isinstance(inner, type) and issubclass(inner, msgspec.Struct) else None


def _convert_value(setting: Setting, name: str, value: Any, kind: type[msgspec.Struct]) -> msgspec.Struct:
    """One table of a table of tables. A message names it as a header: `[limits.keys.laptop] models`."""
    start, header = setting.where.rpartition("[")[0], ".".join(map(quoted, (*setting.table, setting.key, name)))
    if not isinstance(value, dict):
        raise ConfigError(f"{setting.where}: {name!r} must be a table, written [{header}]")
    kinds = {item.name: item.type for item in msgspec.structs.fields(kind)}
    values = {}
    for key, each in value.items():
        inner = setting._replace(key=key, value=each, where=f"{start}[{header}] {key}")
        if key not in kinds:
            raise ConfigError(f"{inner.where}: unknown key{nearest(key, kinds)}")
        values[key] = convert(inner, kinds[key])
    return kind(**values)


def _struct_of_items(kind: Any) -> type[msgspec.Struct] | None:
    """The struct of the tables in a list of them; None for another kind."""
    item = get_args(kind)[0] if get_origin(kind) is tuple else None
    parts = get_args(item) or (item,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, msgspec.Struct)), None)


def _convert_item(setting: Setting, index: int, item: Any, struct: type[msgspec.Struct], kind: Any) -> Any:
    one = setting._replace(value=item, where=f"{setting.where}[{index}]", text=False)
    return convert(one, struct if isinstance(item, dict) else get_args(kind)[0])


def _path(_: type, value: Any) -> Path:
    if not isinstance(value, str):
        raise ValueError(f"expected a path, got {type(value).__name__}")
    return Path(value)


def _from_text(setting: Setting, kind: Any) -> Any:
    """The text of an environment variable in the form of its key: `a,b` is a list, `a=1,b=2` a table."""
    text = setting.value
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if any(get_origin(part) is tuple for part in get_args(kind)):  # a list or a table
        return [item.strip() for item in text.split(",") if item.strip()]
    items = [item.strip() for item in text.split(",") if item.strip()]
    if get_origin(kind) is tuple:
        return items
    if get_origin(kind) is dict or (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        pairs = [item.partition("=") for item in items]
        if twice := next((name for name, count in Counter(pair[0] for pair in pairs).items() if count > 1), None):
            raise ConfigError(f"{setting.where}: {twice!r} is set twice")
        return {name: value for name, _, value in pairs}
    return None if not text and type(None) in get_args(kind) else text


def _problem(message: str, value: Any, kind: Any) -> str:
    if message.startswith("Invalid enum value"):
        choices = [
            choice for part in get_args(kind) for choice in (get_args(part) or [part]) if isinstance(choice, str)
        ]
        number = ["a number"] if any(part is int or get_origin(part) is Annotated for part in get_args(kind)) else []
        return f"{value!r} is not one of {', '.join([*number, *choices])}{nearest(value, choices)}"
    if unknown := re.match(r"Object contains unknown field `([^`]*)`", message):
        return f"unknown key {unknown[1][:100]!r} in one item"
    expected, _, got = message.partition(", got ")
    where = " in one item" if " - at `$" in message else ""
    expected = re.sub(r"`([a-z| ]+)`", _in_words, expected.partition(" - at ")[0])
    for pattern, words in _RANGES:
        expected = re.sub(pattern, words, expected)
    # no text of the value: it may be a key in the wrong form
    found = _TYPES.get(got.partition("`")[2].partition("`")[0], got) if got else repr(value)
    found = str(value).lower() if isinstance(value, bool) else found
    return f"{expected[0].lower()}{expected[1:].replace('`', '')}, got {found}{where}"


def _in_words(types: re.Match[str]) -> str:
    return " or ".join(_TYPES.get(name, name) for name in types[1].split(" | ") if name != "null")


def nearest(word: Any, known: Iterable[str]) -> str:
    """The end of an error message with the nearest right spelling; "" if no spelling is near."""
    found = closest(str(word), known)
    return f"; did you mean {found!r}?" if found else ""


def closest(word: str, known: Iterable[str]) -> str | None:
    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), lower, 1)
    return lower[found[0]] if found else None


def quoted(name: str) -> str:
    """`name` as TOML writes it in a table's header."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else f'"{name}"'


def upper(name: str) -> str:
    """`name` as a part of an environment variable's name."""
    return re.sub(r"[^A-Za-z0-9]", "_", name).upper()
