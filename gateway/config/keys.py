"""The API keys: from the table, the keys file and the environment, with what is wrong or doubtful about them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from gateway.config.tables import ServerConfig
from gateway.errors import ConfigError

API_KEY_VARIABLE = "NPU_GATEWAY_API_KEY"
ENVIRONMENT_KEY = "environment"  # the name of the key in it
_SHORT = 16  # characters; a random text of this length cannot be guessed


def all_keys(server: ServerConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """The keys by their names.

    Args:
        server: with an absolute `api_keys_file`, or none.

    Raises:
        ConfigError: the file has no key or cannot be read, a name is used twice, or the variable is empty.
    """
    keys = dict(server.api_keys)
    for where, name, key in [*_file_keys(server.api_keys_file), *_environment_key(environ)]:
        if name in keys:
            raise ConfigError(f"{where}: another key has the name {_shown(name)} already")
        keys[name] = key
    return keys


def _file_keys(file: str) -> Iterator[tuple[str, str, str]]:
    """(file and line, name, key) of each key. Messages have no text of the file: it can be a key."""
    if not file:
        return
    found = False
    for number, line in enumerate(_text(file).split("\n"), 1):  # not splitlines: U+2028 does not end a comment
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise ConfigError(f"{file}: line {number}: expected KEY or NAME KEY")
        if words[-1].startswith("#"):
            raise ConfigError(f"{file}: line {number}: a key must not start with '#'; give a comment its own line")
        found = True
        yield f"{file}: line {number}", words[0] if len(words) == 2 else f"key{number}", words[-1]
    if not found:
        raise ConfigError(f"[server] api_keys_file: {file} has no key; add a line `KEY` or `NAME KEY`, or unset it")


def _text(file: str) -> str:
    if not file.isprintable():  # a NUL, or what a message of one line cannot quote
        raise ConfigError("[server] api_keys_file: the path must have printable characters only")
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"[server] api_keys_file: {file} is not UTF-8 text") from None
    except OSError:
        raise ConfigError(f"[server] api_keys_file: {file} cannot be read") from None


def _environment_key(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    key = environ.get(API_KEY_VARIABLE)
    if key == "":
        raise ConfigError(f"environment variable {API_KEY_VARIABLE} is empty; set a key, or unset it")
    if key is not None:
        yield f"environment variable {API_KEY_VARIABLE}", ENVIRONMENT_KEY, key


def _shown(name: str) -> str:
    """The name for a message. A long one can be a key: the line `KEY NAME` has them in the wrong order."""
    return repr(name) if len(name) < _SHORT else f"(a name of {len(name)} characters; is it the key?)"


def key_mistakes(keys: Mapping[str, str]) -> Iterator[str]:
    names: dict[str, str] = {}
    for name, key in keys.items():
        if not name or not name.isprintable():
            yield f"the name {_shown(name)} must be printable, and not empty"
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            yield f"the key of {_shown(name)} must be printable ASCII without spaces, and not empty"
        if names.setdefault(key, name) != name:
            yield f"two names have the same key: {_shown(names[key])} and {_shown(name)}"


def key_warnings(server: ServerConfig, config_file: Path | None = None) -> Iterator[str]:
    """What makes the keys easy to guess or to read, or leaves the gateway open to web pages: one line each.

    Args:
        config_file: the file with the configuration, if keys are in it.
    """
    for name, key in server.api_keys.items():
        if len(key) < _SHORT:
            yield f"the API key {_shown(name)} has fewer than {_SHORT} characters and can be guessed"
    for file in (server.api_keys_file, config_file):
        if file and os.name == "posix" and Path(file).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
            yield f"other users can read {file}, which has keys; `chmod 600` prevents it"
    if not server.api_keys and "*" in server.cors_origins:
        yield "cors_origins has '*' and there are no keys: every web page that is open here may use the gateway"
    if not server.api_keys and "*" in server.allowed_hosts:
        yield "allowed_hosts has '*' and there are no keys: a web page can use the gateway by DNS rebinding"
