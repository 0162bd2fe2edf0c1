"""The GGUF files in Ollama's folder: a manifest names a blob, whose name has no suffix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from gateway.bundles.json_file import read_small_file

_MODEL = "application/vnd.ollama.image.model"
_MOST = 1000  # manifests


class _Layer(Struct, frozen=True):
    digest: str
    mediaType: str = ""
    size: int = 0


class _Manifest(Struct, frozen=True):
    layers: list[_Layer]


class Blob(NamedTuple):
    name: str  # "llama3.2:3b"
    file: Path


def ollama_models(folder: Path) -> Iterator[Blob]:
    """The models of `models/manifests/HOST/NAMESPACE/NAME/TAG` whose blob is there. Damaged manifests are left out."""
    root = folder / "manifests"
    try:
        blobs = {blob.name for blob in (folder / "blobs").iterdir()}
        manifests = sorted(root.glob("*/*/*/*"))[:_MOST]
    except OSError:  # none, or of another user
        return
    for manifest in manifests:
        blob = _digest(manifest).replace(":", "-")
        if blob in blobs:
            yield Blob(_name(manifest.relative_to(root)), folder / "blobs" / blob)


def _digest(manifest: Path) -> str:
    """The name of the blob with the weights; "" if the manifest has none."""
    try:
        layers = msgspec.json.decode(read_small_file(manifest), type=_Manifest).layers
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""
    found = next((layer.digest for layer in layers if layer.mediaType == _MODEL), "")
    return found if re.fullmatch("sha256:[0-9a-f]{64}", found) else ""


def _name(path: Path) -> str:
    """As Ollama shows it: without its own host and namespace."""
    host, namespace, name, tag = path.parts
    owner = "" if namespace == "library" else f"{namespace}/"
    return f"{'' if host == 'registry.ollama.ai' else f'{host}/'}{owner}{name}:{tag}"
