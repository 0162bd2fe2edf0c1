"""JSON with comments and trailing commas, as editors write it: read it, and change values without touching the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|//[^\r\n]*|/\*.*?\*/', re.DOTALL)
_STRING_OR_LAST_COMMA = re.compile(r'"(?:\\.|[^"\\])*"|,(?=\s*[}\]])', re.DOTALL)
_LINE_COMMENT = re.compile(r"[ \t]*//[^\r\n]*")
_SPACE = re.compile(r"\s*")
_decoder = json.JSONDecoder()


class _Item(NamedTuple):
    """A value in an object (`key` is a text) or in a list (a number), and its position in the text."""

    key: str | int
    value: Any
    start: int
    end: int


def parse(text: str) -> Any:
    """Raises ValueError."""
    return json.loads(_blank(text))


def merge(text: str, content: Any, identity: str) -> str:
    """The text with `content` merged into it, see `files.combined`. Raises ValueError."""
    blank = _blank(text)
    start = _skip(blank, 0)
    if not isinstance(content, type(_decoder.raw_decode(blank, start)[0])):
        return _dump(content, "") + "\n"
    for at, until, new in sorted(_edits(text, blank, start, content, identity), reverse=True):
        text = text[:at] + new + text[until:]
    return text


def _blank(text: str) -> str:
    """Strict JSON of the same length: comments and trailing commas are spaces."""

    def spaces(match: re.Match[str]) -> str:
        found = match[0]
        return found if found[0] == '"' else re.sub(r"[^\r\n]", " ", found)

    return _STRING_OR_LAST_COMMA.sub(spaces, _STRING_OR_COMMENT.sub(spaces, text))


def _edits(text: str, blank: str, start: int, content: Any, identity: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, new text) of each change in the object or list at `start`."""
    items = list(_items(blank, start))
    indent = _indent(text, items[0].start if items else start, bool(items))
    added = []
    for key, value in _entries(content):
        found = _find(items, key, value, identity)
        if found is None:
            name = f"{json.dumps(key)}: " if isinstance(key, str) else ""
            added.append(f"{indent}{name}{_dump(value, indent)}")
        elif found.value != value:
            if _is_nested(found.value, value, identity):
                yield from _edits(text, blank, found.start, value, identity)
            else:
                yield found.start, found.end, _dump(value, indent)
    if added:
        yield from _insertion(text, blank, start, items, added)


def _entries(content: Any) -> list[tuple[str | int, Any]]:
    return list(content.items() if isinstance(content, dict) else enumerate(content))


def _find(items: list[_Item], key: str | int, value: Any, identity: str) -> _Item | None:
    if isinstance(key, str):
        return next((item for item in reversed(items) if item.key == key), None)  # the last of two equal keys counts
    names = [item for item in items if isinstance(item.value, dict) and item.value.get(identity) == value[identity]]
    return names[0] if names else None


def _is_nested(old: Any, new: Any, identity: str) -> bool:
    if isinstance(old, dict) and isinstance(new, dict):
        return identity not in new or not identity  # an entry of a list is replaced as a whole
    return bool(identity) and isinstance(old, list) and isinstance(new, list)


def _insertion(
    text: str, blank: str, start: int, items: list[_Item], added: list[str]
) -> Iterator[tuple[int, int, str]]:
    """The edits that add these lines after the last item and the comment on its line."""
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = ("," + newline).join(added)
    if not items:
        end = _decoder.raw_decode(blank, start)[1] - 1  # the closing bracket
        line = _line_indent(text, start)
        rest = text[start + 1 : end].rstrip()  # comments
        yield start + 1, end, f"{rest}{newline}{lines}{newline}{line}"
        return
    at = items[-1].end
    comma = _SPACE.match(_blank_comments(text), at)
    if comma and text[comma.end() : comma.end() + 1] == ",":  # a trailing comma
        yield (after := _after_comment(text, comma.end() + 1)), after, f"{newline}{lines}"
    elif (after := _after_comment(text, at)) == at:
        yield at, at, f",{newline}{lines}"
    else:
        yield at, at, ","
        yield after, after, f"{newline}{lines}"


def _after_comment(text: str, at: int) -> int:
    """The end of a comment that follows on the same line; `at` without one."""
    found = _LINE_COMMENT.match(text, at)
    return found.end() if found else at


def _blank_comments(text: str) -> str:
    return _STRING_OR_COMMENT.sub(lambda m: m[0] if m[0][0] == '"' else re.sub(r"[^\r\n]", " ", m[0]), text)


def _items(blank: str, start: int) -> Iterator[_Item]:
    """The values directly in the object or list at `start`."""
    is_object, close = blank[start] == "{", "}" if blank[start] == "{" else "]"
    at, number = _skip(blank, start + 1), 0
    while blank[at] != close:
        key: str | int = number
        if is_object:
            key, at = _decoder.raw_decode(blank, at)
            at = _skip(blank, _skip(blank, at) + 1)
        value, end = _decoder.raw_decode(blank, at)
        yield _Item(key, value, at, end)
        at, number = _skip(blank, end), number + 1
        if blank[at] == ",":
            at = _skip(blank, at + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _line_indent(text: str, at: int) -> str:
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _indent(text: str, at: int, is_item: bool) -> str:
    """The indent of new items: that of the first item, or two spaces more than the line of the bracket."""
    return _line_indent(text, at) if is_item else _line_indent(text, at) + "  "


def _dump(value: Any, indent: str) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", f"\n{indent}")
