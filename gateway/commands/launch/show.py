"""The settings of a client as text, for `launch --print` and for the pages in docs/clients."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from gateway.commands.launch.client import Setup
from gateway.commands.launch.files import text_of


def shown(setup: Setup, home: Path, key: str) -> str:
    """Each file with what is merged into it, the variables, the command. `key` is replaced by its beginning."""
    return without(key, "\n".join(_blocks(setup, home)))


def without(key: str, text: str) -> str:
    """The text with the beginning of the key in place of the key. "": the text as it is."""
    return text.replace(key, hidden(key)) if key else text


def hidden(key: str) -> str:
    """The first four characters of a long key."""
    return f"{key[:4]}..." if len(key) >= 16 else "..."


def _blocks(setup: Setup, home: Path) -> Iterator[str]:
    for file in setup.files:
        yield f"# file {_short(str(file.path), home)}\n{file.initial}{text_of(file)}"
    if setup.environment:
        lines = "\n".join(f"{name}={value}" for name, value in setup.environment.items())
        yield f"# environment\n{lines}\n"
    yield f"# command\n{' '.join(_short(part, home) for part in setup.command)}\n"


def _short(text: str, home: Path) -> str:
    """A path in the home folder as ~/..., another text quoted if a shell needs that."""
    path = Path(text)
    return f"~/{path.relative_to(home).as_posix()}" if path.is_relative_to(home) else shlex.quote(text)
