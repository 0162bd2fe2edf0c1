"""Opens what `npu-gateway check` is given: a folder, a zip, or the URL of a zip."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from gateway.errors import BundleError, ConfigError, quote
from gateway.pull.archive import check_directory, is_zip
from gateway.pull.examine.remote_file import RemoteFile
from gateway.pull.names import model_name
from gateway.pull.spec import UrlSpec, existing, read_spec


class Target(Struct, frozen=True, kw_only=True):
    """Args:
    name: of the bundle in messages.
    root: its content: a Traversable, which msgspec has no type for.
    folder: the folder; None for a zip.
    next_to: the folder for files that are written for it.
    """

    name: str
    root: Any
    folder: Path | None
    next_to: Path


def is_target(text: str) -> bool:
    """True if `text` can only be a URL, or a path: not the name of a model."""
    return bool(re.match(r"[a-z+]+://", text, re.IGNORECASE)) or any(mark in text for mark in "/\\~") or ".zip" in text


@contextmanager
def open_target(text: str) -> Iterator[Target]:
    """Raises ConfigError if there is no file, BundleError if it cannot be read."""
    if text.startswith("hf:") or re.match(r"[a-z+]+://", text, re.IGNORECASE):
        spec = read_spec(text)
        if not isinstance(spec, UrlSpec):
            raise ConfigError(
                f"{quote(text)} is a repository of the Hub, and `check` reads only the address of a zip. "
                "`npu-gateway pull` downloads it and checks it then."
            )
        with RemoteFile(spec.url) as remote:
            yield from _zip(remote, remote.name, Path.cwd())
        return
    path = existing(text)
    if path is None:
        raise ConfigError(f"There is no model, file or folder {quote(text)}.")
    if path.is_dir():
        yield Target(name=path.name, root=path, folder=path, next_to=path.parent)
    elif not path.is_file() or not is_zip(path):
        raise ConfigError(f"{quote(text)} is neither a folder nor a zip. `npu-gateway pull` takes a .gguf file.")
    else:
        with path.open("rb") as file:
            yield from _zip(file, path.name, path.parent)


def _zip(file: IO[bytes] | RemoteFile, name: str, next_to: Path) -> Iterator[Target]:
    try:
        check_directory(file, name)
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeError, ValueError) as error:
        raise BundleError(f"{name} is no zip, or is damaged ({error}). Get it again, from its publisher.") from error
    root: Traversable = zipfile.Path(archive)
    try:
        yield Target(name=model_name(name), root=root, folder=None, next_to=next_to)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, struct.error) as error:
        raise BundleError(f"{name} is damaged ({error}). Get it again, from its publisher.") from error
    except RuntimeError as error:  # zipfile has no other class for it
        if "encrypted" not in str(error):
            raise
        raise BundleError(f"{name} is encrypted. Unpack it, and check the folder.") from error
