"""Adds and removes `[models."NAME"]` tables in config.toml. Every other byte of the file stays as it is.

The tables are found and written as text, and the result is read again: it must say the same as before, but for the one
model. So comments, order and line ends are kept, and an unusual file is refused instead of damaged.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomlkit
from msgspec import Struct
from tomlkit.exceptions import TOMLKitError

from gateway.bundles.replace import exclusive
from gateway.config.file import load_config
from gateway.config.find import find_config
from gateway.config.tables import Config
from gateway.errors import BundleError, ConfigError

_BOM = "\ufeff"
_NOTE = "# npu-gateway:"


class UserConfig(Struct, frozen=True, kw_only=True):
    """The configuration that a pull changes.

    Args:
        path: what the user named with --config.
        file: what is written. It may not exist yet.
        text: its content, or what it starts from: the packaged file is never changed, the user's copy is.
        config: what is configured now; it may have no model.
    """

    path: Path | None
    file: Path
    text: str
    config: Config


def find_user_config(path: Path | None) -> UserConfig:
    """The configuration that the other commands read too. Raises ConfigError."""
    config = load_config(path, may_be_empty=True)
    file, base = find_config(path)
    is_users = file.absolute().parent == base.absolute()
    try:
        text = file.read_bytes().decode() if file.is_file() else ""
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    return UserConfig(path=path, file=file if is_users else base / "config.toml", text=text, config=config)


def table_text(name: str, table: Mapping[str, Any]) -> str:
    """The table of a model as TOML."""
    header = f"[models.{tomlkit.string(name).as_string()}]"
    return "\n".join([header, *(f"{key} = {tomlkit.item(value).as_string()}" for key, value in table.items()), ""])


def add_model(user: UserConfig, name: str, table: Mapping[str, Any]) -> bool:
    """Add the table at the end of the file. Returns False if the file has a model of that name.

    Raises ConfigError if the file cannot be changed; the caller prints the table.
    """
    with _fresh(user, "Add the printed table to it yourself.") as (current, advice):
        if name in current.config.models:
            return False
        text, newline = current.text.rstrip("\r\n \t"), _newline(current.text)
        added = table_text(name, table).replace("\n", newline)
        content = f"{text}{newline}{newline}{added}" if text.removeprefix(_BOM) else f"{text}{added}"
        expected = _read(current.text, current.file)
        expected.setdefault("models", {})[name] = dict(table)
        _write(current.file, content, expected, advice)
    return True


def remove_model(user: UserConfig, name: str) -> None:
    """Remove the table of a model and the tables in it. Raises ConfigError if that is not possible."""
    header = f"[models.{tomlkit.string(name).as_string()}]"
    with _fresh(user, f"Remove the table {header} from it yourself.") as (current, advice):
        expected = _read(current.text, current.file)
        del expected["models"][name]
        if not expected["models"]:
            del expected["models"]
        _write(current.file, _without(current.text, name), expected, advice)


def note_model(user: UserConfig, name: str, note: str) -> None:
    """Write one comment below the header of the model's table, in place of the last one. Raises ConfigError."""
    with _fresh(user, f"It would say about {name}: {note}.") as (current, advice):
        newline, lines = _newline(current.text), current.text.splitlines(keepends=True)
        found = [index for index, line in enumerate(lines) if _is_header_of(line.strip(), name)]
        if not found:
            raise ConfigError(f"{current.file}: there is no table of {name}. {advice}")
        after = found[0] + 1
        is_noted = after < len(lines) and lines[after].startswith(_NOTE)
        lines[after : after + is_noted] = [f"{_NOTE} {note}{newline}"]
        if not lines[found[0]].endswith("\n"):
            lines[found[0]] += newline
        _write(current.file, "".join(lines), _read(current.text, current.file), advice)


@contextmanager
def _fresh(user: UserConfig, advice: str) -> Iterator[tuple[UserConfig, str]]:
    """The configuration as it is now, while no other program changes it, and the advice for messages."""
    try:
        with exclusive(user.file):
            yield find_user_config(user.path), advice
    except BundleError as error:
        raise ConfigError(f"{user.file}: cannot be written: {error.message} {advice}") from error


def _without(text: str, name: str) -> str:
    """The text without the lines from a header of the model's tables to the last key of that table."""
    kept: list[str] = []
    waiting: list[str] = []  # empty lines and comments after a key: of the next table, if no key follows
    is_inside = False
    for line in text.splitlines(keepends=True):
        stripped = line.removeprefix(_BOM).strip()
        if stripped.startswith("["):
            kept += waiting
            is_inside, waiting = _is_header_of(stripped, name), []
        if not is_inside:
            kept.append(line)
        elif not stripped or stripped.startswith("#"):
            waiting.append(line)
        else:
            waiting = []
    return _without_double_gap("".join(kept + waiting))


def _without_double_gap(text: str) -> str:
    return re.sub(r"(\r?\n){3,}", lambda gap: _newline(gap[0]) * 2, text)


def _is_header_of(line: str, name: str) -> bool:
    try:
        models = tomlkit.parse(line).unwrap().get("models", {})
    except TOMLKitError:
        return False
    return isinstance(models, dict) and name in models


def _write(file: Path, text: str, expected: Mapping[str, Any], advice: str) -> None:
    """Replace the file, or make it. It keeps its rights, and a link to it stays one."""
    target = file.resolve()
    if not _says(text, expected) or (target.exists() and not target.is_file()):
        raise ConfigError(f"{file}: the file is written in a way that only a person can change. {advice}")
    new = target.with_name(f".{target.name}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(text.encode())
        if target.exists():
            shutil.copymode(target, new)
            if not os.access(target, os.W_OK):
                raise PermissionError(13, "it is read-only")
        new.replace(target)
    except OSError as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise ConfigError(f"{file}: cannot be written: {error.strerror or error}. {advice}") from error


def _says(text: str, expected: Mapping[str, Any]) -> bool:
    try:
        return bool(tomlkit.parse(text.removeprefix(_BOM)).unwrap() == expected)
    except TOMLKitError:
        return False


def _read(text: str, file: Path) -> dict[str, Any]:
    try:
        return dict(tomlkit.parse(text.removeprefix(_BOM)).unwrap())
    except TOMLKitError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
