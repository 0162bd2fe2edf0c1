"""Merges settings into the files of clients. What is there stays, comments too; a copy is made once a day."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomlkit
import yaml
from tomlkit.exceptions import TOMLKitError

from gateway.commands.launch import jsonc, yaml_text
from gateway.commands.launch.client import File
from gateway.errors import ConfigError

_BOM = "\ufeff"
_MAX_BYTES = 2**22


def text_of(file: File) -> str:
    """The content alone, as a new file has it after `initial`."""
    match file.format:
        case "json":
            return json.dumps(file.content, indent=2, ensure_ascii=False) + "\n"
        case "yaml":
            return yaml_text.dump(file.content)
        case "toml":
            return tomlkit.dumps(file.content)  # type: ignore[arg-type]


def write(file: File) -> Iterator[str]:
    """Merge the content into the file. Yields one line for the user about each file that was written.

    Raises ConfigError if the file cannot be read, merged or written; it is unchanged then.
    """
    old = _read(file.path)
    new = merged(file, old)
    if new == old:
        yield f"{file.path}: is up to date"
        return
    if old and (backup := _back_up(file.path)):
        yield f"{file.path}: the old file is {backup.name}"
    _replace(file.path, new)
    yield f"{file.path}: written"


def merged(file: File, old: str) -> str:
    """The text of the file with the content in it. Raises ConfigError if that needs a person."""
    advice = f"Add this yourself:\n{text_of(file)}"
    body = old.removeprefix(_BOM)
    if not body.strip():
        return file.initial + text_of(file)
    try:
        content = _parse(file, body)
        _check_kinds(content, file.content)
        expected = combined(content, file.content, file.identity)
        new = _with_line_ends_of(body, _merge_text(file, body))
        is_right = _parse(file, new) == expected
    except (ValueError, TypeError, yaml.YAMLError, TOMLKitError, RecursionError) as error:
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"{file.path}: the file cannot be read as {file.format.upper()}: {line}. {advice}") from None
    if not is_right:
        raise ConfigError(f"{file.path}: the file is written in a way that only a person can change. {advice}")
    return _BOM + new if old.startswith(_BOM) else new


def _with_line_ends_of(old: str, new: str) -> str:
    """CRLF in all of the new text if every line of the old one has it."""
    is_crlf = "\r\n" in old and not re.search(r"(?<!\r)\n", old)
    return re.sub(r"(?<!\r)\n", "\r\n", new) if is_crlf else new


def combined(old: Any, new: Any, identity: str) -> Any:
    """`new` merged into `old`: objects by key, lists by the key `identity` of their entries."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: combined(old.get(key), value, identity) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list) and identity:
        result = list(old)
        for entry in new:
            index = position(result, entry, identity)
            result[index : index + 1] = [entry]
        return result
    return new


def _check_kinds(old: Any, new: Any) -> None:
    """Raise ValueError if an object or a list would replace something else: that would be lost."""
    if isinstance(new, dict | list) and old is not None and not isinstance(old, type(new)):
        kinds: dict[type, str] = {dict: "an object", list: "a list"}
        raise ValueError(f"{kinds.get(type(old), 'a single value')} is where {kinds[type(new)]} is expected")
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in new.items():
            _check_kinds(old.get(key), value)


def position(entries: list[Any], entry: dict[str, Any], identity: str) -> int:
    """Where an entry of this name is; the end, if there is none."""
    names = [each.get(identity) if isinstance(each, dict) else None for each in entries]
    return names.index(entry[identity]) if entry[identity] in names else len(entries)


def _parse(file: File, text: str) -> Any:
    match file.format:
        case "json":
            return jsonc.parse(text)
        case "yaml":
            return yaml.safe_load(text)
        case "toml":
            return tomlkit.parse(text).unwrap()


def _merge_text(file: File, text: str) -> str:
    match file.format:
        case "json":
            return jsonc.merge(text, file.content, file.identity)
        case "yaml":
            return yaml_text.merge(text, file.content, file.identity)
        case "toml":
            document = tomlkit.parse(text)
            _merge_table(document, file.content)
            return tomlkit.dumps(document)


def _merge_table(table: Any, content: Any) -> None:
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(table.get(key), dict):
            _merge_table(table[key], value)
        else:
            table[key] = value


def _read(path: Path) -> str:
    try:
        if path.exists() and path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: is too large for a file of settings")
        return path.read_bytes().decode("utf-8") if path.exists() else ""
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text. Save it as UTF-8 and try again.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None


def _back_up(path: Path) -> Path | None:
    """Copy the file to NAME.DATE.bak. None if there is one of this day."""
    day = datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d")
    backup = path.with_name(f"{path.name}.{day}.bak")
    if backup.exists():
        return None
    try:
        shutil.copy2(path, backup)
    except OSError as error:
        raise ConfigError(f"{backup}: cannot be written: {error.strerror or error}") from None
    return backup


def _replace(path: Path, text: str) -> None:
    """Replace the file in one step. A link stays one, the rights stay; a new file is for its user alone."""
    try:
        target = path.resolve()
    except RuntimeError:
        raise ConfigError(f"{path}: is a link to itself") from None
    new = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(text.encode())
        if target.exists():
            if not os.access(target, os.W_OK):
                raise PermissionError(13, "it is read-only")
            shutil.copymode(target, new)  # after the check: Windows deletes no read-only file
        new.replace(target)
    except OSError as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
