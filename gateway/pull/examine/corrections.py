"""What the gateway reads otherwise than a bundle's configuration says, as sentences and as a corrected configuration.

The readers in gateway/bundles/ make these corrections in memory. The corrected file is for other programs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import Any

import msgspec
from msgspec import Struct

from gateway.bundles.genie.config import NAMES, Dialog, read_config
from gateway.bundles.json_file import LONGEST, read_json

_MACHINE_OPTIONS = ("backend_path", "soc_model", "htp_arch")


class Corrections(Struct, frozen=True):
    """`file`: the name of the configuration; "": there is nothing to correct."""

    sentences: list[str]
    file: str = ""
    content: dict[str, Any] = {}


class _AddedToken(Struct):
    id: int


class _Tokenizer(Struct):
    added_tokens: list[_AddedToken] = []


def correct_genie(folder: Path, names: set[str]) -> Corrections:
    """Raises BundleError if the configuration cannot be read.

    Args:
        folder: has the small files of the bundle.
        names: all files of the bundle.
    """
    file = next(folder / name for name in NAMES if (folder / name).is_file())
    raw, dialog = read_config(file)
    raw = copy.deepcopy(raw)
    sentences = [*_behaviour(raw["dialog"], dialog, folder), *_paths(raw["dialog"], names)]
    return Corrections(sentences, file.name, raw) if sentences else Corrections([])


def correct_genai(folder: Path) -> Corrections:
    """As `correct_genie`, for genai_config.json."""
    raw = read_json(folder / "genai_config.json", dict[str, Any])
    sentences = list(_genai(raw))
    return Corrections(sentences, "genai_config.json", raw) if sentences else Corrections([])


def _behaviour(raw: dict[str, Any], dialog: Dialog, folder: Path) -> Iterator[str]:
    htp = raw["engine"]["backend"].get("QnnHtp") or {}
    if htp.get("poll"):
        htp["poll"] = False
        yield "`poll` is off: it keeps CPU cores busy and slows answers down (`poll = true` in the table keeps it)"
    context = raw["context"]
    if context.get("bos-token") is None:
        context["bos-token"] = -1
        yield "`bos-token` is null or missing: the model has no begin token, and the library wants -1"
    if dialog.context.eot_token is not None and dialog.context.eot_token not in _added_tokens(folder, dialog):
        yield f"`eot-token` {context.pop('eot-token')} is an ordinary token of the tokenizer, so it ends no answer"


def _added_tokens(folder: Path, dialog: Dialog) -> set[int]:
    """The tokens with a name. The end tokens if there is no tokenizer."""
    file = folder / PureWindowsPath(dialog.tokenizer.path).name
    if not file.is_file():
        return {dialog.context.eot_token or -1}
    return {token.id for token in read_json(file, _Tokenizer, longest=LONGEST).added_tokens}


def _paths(raw: dict[str, Any], names: set[str]) -> Iterator[str]:
    backend, binary = raw["engine"]["backend"], raw["engine"]["model"]["binary"]
    moved = [name for name in (raw["tokenizer"]["path"], *binary["ctx-bins"]) if PureWindowsPath(name).name != name]
    if moved:
        raw["tokenizer"]["path"] = PureWindowsPath(raw["tokenizer"]["path"]).name
        binary["ctx-bins"] = [PureWindowsPath(name).name for name in binary["ctx-bins"]]
        yield f"paths of another machine, such as {moved[0]!r}: the files are searched by their names"
    if extensions := backend.get("extensions"):
        backend["extensions"] = PureWindowsPath(extensions).name
        if backend["extensions"] not in names:
            del backend["extensions"]
            yield f"{PureWindowsPath(extensions).name} is missing: Genie runs without it"


def _genai(raw: dict[str, Any]) -> Iterator[str]:
    model = raw.get("model") or {}
    pad = model.get("pad_token_id")
    if isinstance(pad, list):
        model["pad_token_id"] = next(iter(pad), None)
        yield "`pad_token_id` is a list: its first id is used"
    dropped = sorted(set(_dropped_options(model)))
    if dropped:
        yield f"options of the machine where it was made are ignored: {', '.join(dropped)}"


def _dropped_options(value: Any) -> Iterator[str]:
    """Remove the options of every `qnn` table."""
    match value:
        case {"qnn": dict(options)}:
            for name in _MACHINE_OPTIONS:
                if options.pop(name, None) is not None:
                    yield name
        case dict():
            for inner in value.values():
                yield from _dropped_options(inner)
        case list():
            for inner in value:
                yield from _dropped_options(inner)


def write_corrected(folder: Path, corrections: Corrections) -> list[Path]:
    """Write the corrected configuration into `folder`. Raises OSError."""
    if not corrections.file:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / corrections.file
    path.write_bytes(msgspec.json.format(msgspec.json.encode(corrections.content), indent=2) + b"\n")
    return [path]
