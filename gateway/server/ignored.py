"""Fields of a request that are accepted and have no effect: the header `x-gateway-ignored` and a line in the log.

    x-gateway-ignored: tools[1] (web_search), temprature (unknown; did you mean temperature?)

`read_json` begins the list of a request. Any code that works for the request adds to it with `note_ignored`, also in
the thread of large bodies. Headers are sent before the first event, so a later note is not in them.
"""

from __future__ import annotations

import difflib
import itertools
import logging
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import cache
from typing import Any, get_args, get_type_hints

import msgspec
from litestar.types import Scope
from msgspec import Struct

HEADER = "x-gateway-ignored"
MAX_NOTES = 100  # of one request, and of unknown fields in one object
MAX_SHOWN = 20  # fields in the header; it ends with the number of the others
MAX_CAUSES = 200  # in the log, while the gateway runs
_MAX_LEVELS = 8  # of objects and lists that are searched; each one is read again at every level above it
_LONGEST = 80  # characters of one field
_SIMILAR = 0.72  # of two names; `max_tokens` and `max_output_tokens` have 0.74
_EMPTY = (b"null", b"[]", b"{}")

_log = logging.getLogger(__name__)
_current: ContextVar[dict[str, None]] = ContextVar("ignored")
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items = msgspec.json.Decoder(list[msgspec.Raw])


def note_ignored(param: str, reason: str = "") -> None:
    """Report that a field of the current request has no effect. Outside a request it does nothing.

    Args:
        param: the field's path as in an error: "tools.1", "messages.0.content.2".
        reason: the value that is not supported, or why the field has no effect: a few words.
    """
    notes = _current.get(None)
    if notes is not None and len(notes) < MAX_NOTES:
        path = re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", param)
        notes[_printable(path) + (f" ({_printable(reason)})" if reason else "")] = None


def begin_notes(scope: Scope) -> None:
    """Begin the list of a request."""
    notes: dict[str, None] = {}
    scope["state"]["ignored"] = notes
    _current.set(notes)


def note_unknown_fields(body: bytes, struct: Any) -> None:
    """Note the fields of a JSON object that `struct` does not have.

    Of objects in lists (messages, tools) only the misspelt fields are noted, each name once: clients keep fields of
    their own there. A struct can have a class variable `unused`: the names that clients send and that change no answer.
    """
    if not _is_struct(struct):
        return
    inside_lists: set[str] = set()
    for path, name, known in _unknown(body, struct):
        is_in_list = "[" in path
        if is_in_list and (name in inside_lists or len(inside_lists) == MAX_NOTES):
            continue
        inside_lists.update([name] if is_in_list else [])
        if near := difflib.get_close_matches(name[:_LONGEST], known, 1, _SIMILAR):
            note_ignored(path + name, f"unknown; did you mean {near[0]}?")
        elif not is_in_list:
            note_ignored(path + name, "not supported")


class IgnoredLog:
    """Logs each cause once, so that a program that repeats a request does not fill the log."""

    def __init__(self) -> None:
        self._causes: set[str] = set()

    def write(self, notes: dict[str, None]) -> None:
        for note in notes:
            cause = re.sub(r"\[\d+\]", "[]", note)
            if cause not in self._causes and len(self._causes) < MAX_CAUSES:
                self._causes.add(cause)
                _log.info("a request has a field without effect: %s; the header %s lists them", note, HEADER)


def header_of(scope: Scope) -> str:
    """The header of the request's reply; "" if every field has an effect."""
    notes: dict[str, None] = scope["state"].get("ignored") or {}
    if not notes:
        return ""
    scope["app"].state.ignored_log.write(notes)
    shown = list(notes)[:MAX_SHOWN]
    return ", ".join([*shown, *([f"and {len(notes) - MAX_SHOWN} more"] if len(notes) > MAX_SHOWN else [])])


def _printable(text: str) -> str:
    """Printable ASCII without the comma, which separates fields."""
    shown = re.sub(r"[^\x20-\x7e]", "?", text[:_LONGEST]).replace(",", ";")
    return shown if len(text) <= _LONGEST else shown + "..."


def _unknown(body: bytes | msgspec.Raw, struct: Any, path: str = "") -> Iterator[tuple[str, str, Iterable[str]]]:
    """The path of the object, the unknown name, and the names that the object can have."""
    values = _fields.decode(body)
    known = _inner_structs(struct)
    unused: frozenset[str] = getattr(struct, "unused", frozenset())
    names = (name for name, raw in values.items() if name not in known and name not in unused and _is_set(raw))
    yield from ((path, name, known) for name in itertools.islice(names, MAX_NOTES))
    for name, inner in known.items():
        if inner is not None and name in values:
            yield from _unknown_inside(values[name], inner, path + name)


def _unknown_inside(body: msgspec.Raw, struct: Any, path: str) -> Iterator[tuple[str, str, Iterable[str]]]:
    """As `_unknown`, for a field that can have one object or a list of them. Does not copy it."""
    if path.count(".") + path.count("[") == _MAX_LEVELS:
        return
    match bytes(memoryview(body)[:1]):
        case b"{":
            yield from _unknown(body, struct, f"{path}.")
        case b"[":
            for index, item in enumerate(_items.decode(body)):
                yield from _unknown_inside(item, struct, f"{path}[{index}]")


def _is_set(raw: msgspec.Raw) -> bool:
    return bytes(raw).strip() not in _EMPTY


@cache
def _inner_structs(struct: Any) -> dict[str, Any]:
    """The fields of a struct under their names on the wire; the struct of an object or of a list's items, else None."""
    hints = get_type_hints(struct)
    return {item.encode_name: next(_structs(hints[item.name]), None) for item in msgspec.structs.fields(struct)}


def _structs(kind: Any) -> Iterator[Any]:
    if _is_struct(kind):
        yield kind
    for inner in get_args(kind):
        yield from _structs(inner)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)
