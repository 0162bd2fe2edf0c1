"""Changes values in YAML text without touching the rest: top-level keys, and the entries of one list."""

from __future__ import annotations

import re
from typing import Any

import yaml

_COMMENT = re.compile(r"[ \t]+#[^\r\n]*")


class _Indented(yaml.SafeDumper):
    """Indents lists below their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def dump(content: Any) -> str:
    return yaml.dump(content, Dumper=_Indented, sort_keys=False, allow_unicode=True, width=1000)


def merge(text: str, content: Any, identity: str) -> str:
    """The text with `content` merged into it, see `files.combined`. The caller checks the result. Raises YAMLError."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:  # only comments
        return _end_line(text) + dump(content)
    if isinstance(root, yaml.SequenceNode) and isinstance(content, list):
        return _merge_list(text, root, content, identity)
    if not isinstance(root, yaml.MappingNode) or not isinstance(content, dict):
        return text
    for key, value in content.items():
        text = _merge_key(text, key, value, identity)
    return text


def _merge_key(text: str, key: str, value: Any, identity: str) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    nodes = {name.value: node for name, node in root.value} if isinstance(root, yaml.MappingNode) else {}
    node = nodes.get(key)
    if node is None:
        return _end_line(text) + dump({key: value})
    if isinstance(node, yaml.SequenceNode) and isinstance(value, list):
        return _merge_list(text, node, value, identity)
    if isinstance(node, yaml.ScalarNode) and node.start_mark.index == node.end_mark.index:  # `key:` without a value
        at = node.start_mark.index
        return f"{text[:at]}\n{_indented(dump(value), 2)}".rstrip("\n") + "\n" + text[at:].lstrip("\r\n")
    new = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1000)
    return text[: node.start_mark.index] + new.removesuffix("...\n").rstrip("\n") + text[_end(node) :]


def _merge_list(text: str, node: yaml.SequenceNode, entries: list[Any], identity: str) -> str:
    """Replace the entries that are there, from the end, and add the others after the last one."""
    column = node.start_mark.column
    if node.flow_style:
        if node.value:
            return text  # the caller refuses it
        return (
            f"{text[: node.start_mark.index].rstrip(' ')}\n{_indented(dump(entries), 2)}{text[_end(node) :].lstrip()}"
        )
    known = {_name(each, identity): each for each in node.value}
    added = [entry for entry in entries if entry[identity] not in known]
    at = _after_comment(text, _end(node.value[-1]))
    edits = [(at, at, "\n" + _indented(dump(added), column).rstrip("\n"))] if added else []
    for entry in entries:
        if found := known.get(entry[identity]):
            fresh = _indented(dump(entry), found.start_mark.column).strip()
            edits.append((found.start_mark.index, _end(found), fresh))
    for at, until, new in sorted(edits, reverse=True):
        text = text[:at] + new + text[until:]
    return text


def _name(node: yaml.Node, identity: str) -> Any:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value.value for key, value in pairs if key.value == identity), None)


def _end(node: yaml.Node) -> int:
    """The end of the last value in it: the end of a block in YAML includes the comments that follow it."""
    while isinstance(node, yaml.MappingNode | yaml.SequenceNode) and not node.flow_style and node.value:
        last = node.value[-1]
        node = last[1] if isinstance(last, tuple) else last
    return int(node.end_mark.index)


def _after_comment(text: str, at: int) -> int:
    """The end of a comment that follows on the same line; `at` without one."""
    found = _COMMENT.match(text, at)
    return found.end() if found else at


def _indented(text: str, columns: int) -> str:
    return "".join(f"{' ' * columns}{line}" if line.strip() else line for line in text.splitlines(keepends=True))


def _end_line(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"
