"""Names of models and of files that every file system takes, Windows' included."""

from __future__ import annotations

import re
import unicodedata

from gateway.errors import ConfigError, quote

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³")}
_FORBIDDEN = frozenset('<>:"/\\|?*')
_LONGEST = 200  # characters of one name; most file systems take 255 bytes
#: What AI Hub adds to a model's id in the name of its zip: runtime, precision and chip.
_AI_HUB_SUFFIX = re.compile(r"-(geniex_qairt|genie|onnxruntime_genai|precompiled_qnn_onnx)-.*")


def check_model_name(name: str) -> str:
    """The name, if it can be a folder. Raises ConfigError."""
    if not _MODEL.fullmatch(name) or (fault := fault_of(name)):
        reason = fault if _MODEL.fullmatch(name) else "takes letters, digits, '.', '_' and '-', at most 80"
        raise ConfigError(f"{quote(name)} cannot be a model's name: it {reason}. Choose another with --as.")
    return name


def model_name(text: str) -> str:
    """A model's name from a file name or a repository's name."""
    stem = re.sub(r"\.(zip|gguf)$", "", text, flags=re.IGNORECASE)
    stem = re.sub(r"[-_.]gguf$", "", _AI_HUB_SUFFIX.sub("", stem), flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:80] or "model"


def fault_of(name: str) -> str:
    """Why `name` cannot be the name of a file or folder, as the end of a sentence; "" if it can."""
    if not name or name in (".", ".."):
        return "is no name"
    if len(name) > _LONGEST:
        return f"has more than {_LONGEST} characters"
    if any(character in _FORBIDDEN or unicodedata.category(character)[0] == "C" for character in name):
        return "has a character that Windows does not allow"
    if name[-1] in ". " or name[0] == " ":
        return "begins or ends with a character that Windows drops"
    if name.split(".")[0].rstrip(" ").casefold() in _DEVICES:
        return "is the name of a device on Windows"
    return ""


def key_of(path: str) -> str:
    """The same for two paths that are one file on a file system that ignores case or the form of accents."""
    return unicodedata.normalize("NFC", path).casefold()
