"""The architecture of a GGUF file, from its first bytes. The weights are not read."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from msgspec import Struct

_HEAD = struct.Struct("<4sIQQ")  # magic, version, tensors, keys
_LENGTH = struct.Struct("<Q")
_KEY = b"general.architecture"  # the first key that every converter writes
_STRING = 8  # the type number of a text
_READ = 4096  # bytes
_LONGEST = 64  # characters of a name


#: The second and later parts of a model in several files.
LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


class GgufHead(Struct, frozen=True):
    """`architecture` is "" if it is not in the first bytes."""

    architecture: str


def read_gguf_head(file: Path) -> GgufHead | None:
    """What the file begins with; None: it is no GGUF file, or cannot be read."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_READ)
    except OSError:
        return None
    if len(content) < _HEAD.size or not content.startswith(b"GGUF"):
        return None
    return GgufHead(_architecture(content[_HEAD.size :]))


def _architecture(content: bytes) -> str:
    begin = _LENGTH.pack(len(_KEY)) + _KEY + struct.pack("<I", _STRING)
    at = content.find(begin)
    start = at + len(begin) + _LENGTH.size
    if at < 0 or start > len(content):
        return ""
    (length,) = _LENGTH.unpack_from(content, at + len(begin))
    return content[start : start + length].decode("ascii", "replace") if length <= _LONGEST else ""
