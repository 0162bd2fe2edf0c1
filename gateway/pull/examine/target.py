"""Opens what `npu-gateway check` is given: a folder, a zip, the URL of a zip, or a repository of the Hub."""

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
from urllib.parse import quote as url_quote

from msgspec import Struct

from gateway.errors import BundleError, ConfigError, quote
from gateway.pull.archive import check_directory, is_zip
from gateway.pull.examine.remote_file import RemoteFile
from gateway.pull.examine.repository import opened_repository
from gateway.pull.hub import bundle_root, files_in, read_repo, remotes
from gateway.pull.names import model_name
from gateway.pull.sources import find_sources
from gateway.pull.spec import HubSpec, UrlSpec, default_name, existing, read_spec


class Target(Struct, frozen=True, kw_only=True):
    """Args:
    name: of the bundle in messages.
    root: its content: a Traversable, which msgspec has no type for.
    folder: the folder; None for a zip and for what is not on this machine.
    next_to: the folder for files that are written for it.
    """

    name: str
    root: Any
    folder: Path | None
    next_to: Path


def is_target(text: str) -> bool:
    """True if `text` can only be a URL, or a path: not the name of a model."""
    is_remote = text.startswith("hf:") or re.match(r"[a-z+]+://", text, re.IGNORECASE)
    return bool(is_remote) or any(mark in text for mark in "/\\~") or ".zip" in text


@contextmanager
def open_target(text: str) -> Iterator[Target]:
    """Raises ConfigError if there is no file, BundleError if it cannot be read."""
    if text.startswith("hf:") or re.match(r"[a-z+]+://", text, re.IGNORECASE):
        spec = read_spec(text)
        if isinstance(spec, HubSpec):
            yield from _repository(spec)
        elif isinstance(spec, UrlSpec):
            yield from _remote_zip(spec.url)
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


def _repository(spec: HubSpec) -> Iterator[Target]:
    hub = find_sources().hub
    repo = read_repo(hub, spec)
    if spec.path.endswith(".zip"):
        yield from _remote_zip(f"{hub}/{repo.name}/resolve/{repo.commit}/{url_quote(spec.path)}")
        return
    root = bundle_root(repo, spec)
    within = spec.path if root is None else root
    files = remotes(hub, repo, files_in(repo, within), within)
    name = default_name(spec)
    with opened_repository(name, files) as opened:
        yield Target(name=name, root=opened, folder=None, next_to=Path.cwd())


def _remote_zip(url: str) -> Iterator[Target]:
    with RemoteFile(url) as remote:
        yield from _zip(remote, remote.name, Path.cwd())


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
