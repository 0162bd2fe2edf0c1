"""Reads a Genie bundle: its config.json, the files that it names, and the chat template for its model.

Snapdragon laptops come with models in this layout, and AI Hub exports it.

1. Genie resolves relative paths against the working directory of the process. Published configurations name their
   files relative to an unknown folder (`genie\\python\\models\\...`). This module searches for a path from the
   configuration's folder upwards, then for the file name in the configuration's folder. Genie gets absolute paths.
2. `sampler` is replaced, because a dialog that is created greedy stays greedy even if another sampler is applied later.
3. A binary does not contain its length, and the library does not always detect a truncated file. So this module
   detects what is visible from outside: an empty file, a Git LFS pointer, only zeros at the end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from gateway.bundles.bundle import find_chat_template
from gateway.bundles.genie_templates import family_template
from gateway.bundles.json_file import read_json, read_optional_object
from gateway.errors import BundleError

_FORECAST = "kv-cache.primary.qnn-htp"
#: Tokens. The widest pass of the published models, assumed if the bundle does not state its own width.
_USUAL_WIDTH = 128
_GRAPH_NAME = re.compile(rb"(?<![a-zA-Z])ar(\d+)_cl\d+_\d+_of_\d+")
_SAMPLER = {"version": 1, "seed": 0, "temp": 1.0, "top-k": 40, "top-p": 1.0}

TokenId = Annotated[int, Meta(ge=0)]


class GenieBundle(Struct, frozen=True, kw_only=True):
    """What a bundle says about its model, before the library is loaded."""

    folder: Path
    config: dict[str, Any]  # config.json for Genie, with absolute paths
    dialog_type: str
    context_length: int  # tokens, of the compiled graphs
    prompt_width: int  # the maximum number of prompt tokens in one pass
    vocab_size: int
    bos_id: int
    end_ids: tuple[int, ...]
    binaries: tuple[Path, ...]
    tokenizer_path: Path
    tokenizer_config: dict[str, Any]
    chat_template: str | None

    @property
    def usable_context(self) -> int:
        """The maximum number of tokens of prompt and answer together: the context without two passes.

        After a longer conversation, the library counts wrongly in the next one and later crashes (docs/genie.md).
        """
        return self.context_length - 2 * self.prompt_width


def load_genie_bundle(path: Path, dialect: str = "") -> GenieBundle:
    """Read the configuration at `path` and check every file that it names. Raises BundleError for each fault.

    Args:
        dialect: selects the chat template if the bundle has none; "": the special tokens select it.
    """
    raw, dialog = _read(path)
    folder = path.absolute().parent
    tokenizer_path = _located(folder, dialog.tokenizer.path, "tokenizer")
    tokenizer_config = _special_tokens(tokenizer_path, dialog) | read_optional_object(
        tokenizer_path.with_name("tokenizer_config.json")
    )
    template = find_chat_template(tokenizer_path.parent, tokenizer_config)
    binaries = tuple(_located(folder, name, "context binary") for name in dialog.engine.model.binary.ctx_bins)
    for binary in binaries:
        _check_binary(binary)
    return GenieBundle(
        folder=folder,
        config=_with_absolute_paths(raw, dialog, folder, tokenizer_path, binaries),
        dialog_type=dialog.type,
        context_length=dialog.context.size,
        prompt_width=_prompt_width(folder, dialog.context.size),
        vocab_size=dialog.context.n_vocab,
        bos_id=dialog.context.bos_token,
        end_ids=dialog.context.end_ids,
        binaries=binaries,
        tokenizer_path=tokenizer_path,
        tokenizer_config=tokenizer_config,
        chat_template=template or family_template(dialect, _added_tokens(tokenizer_path).values()),
    )


class _Context(Struct, rename="kebab"):
    size: Annotated[int, Meta(ge=2)]
    n_vocab: Annotated[int, Meta(ge=1)]
    bos_token: TokenId
    eos_token: TokenId | list[TokenId]
    eot_token: TokenId | None = None

    @property
    def end_ids(self) -> tuple[int, ...]:
        ids = [self.eos_token] if isinstance(self.eos_token, int) else self.eos_token
        return tuple(dict.fromkeys([*ids, *([] if self.eot_token is None else [self.eot_token])]))


class _Tokenizer(Struct):
    path: str


class _Binary(Struct, rename="kebab"):
    ctx_bins: Annotated[list[str], Meta(min_length=1)]


class _Model(Struct):
    binary: _Binary


class _Backend(Struct):
    type: Literal["QnnHtp"]
    extensions: str | None = None


class _Engine(Struct):
    backend: _Backend
    model: _Model


class _Forecast(Struct, rename="kebab"):
    forecast_prefix_name: str


class _Dialog(Struct, rename={"ssd": "ssd-q1"}):
    type: Literal["basic", "ssd-q1"]  # the types with one engine and one stream
    context: _Context
    tokenizer: _Tokenizer
    engine: _Engine
    ssd: _Forecast | None = None


class _Config(Struct):
    dialog: _Dialog


def _read(path: Path) -> tuple[dict[str, Any], _Dialog]:
    if not path.is_file():
        raise BundleError(f"There is no Genie configuration at {path.name}; `path` names the bundle's config.json.")
    raw = read_json(path, dict[str, Any])
    try:
        dialog = msgspec.convert(raw, _Config).dialog
    except msgspec.ValidationError as error:
        raise BundleError(f"{path.name} is not a Genie configuration that can be served: {error}.") from error
    if dialog.type == "ssd-q1" and dialog.ssd is None:
        raise BundleError(f"{path.name}: a dialog of type 'ssd-q1' needs its table `ssd-q1`.")
    return raw, dialog


def _with_absolute_paths(
    raw: dict[str, Any], dialog: _Dialog, folder: Path, tokenizer: Path, binaries: tuple[Path, ...]
) -> dict[str, Any]:
    own = raw["dialog"]
    own["sampler"] = _SAMPLER
    own["tokenizer"]["path"] = str(tokenizer)
    own["engine"]["model"]["binary"]["ctx-bins"] = [str(binary) for binary in binaries]
    if dialog.engine.backend.extensions is not None:
        extensions = _located(folder, dialog.engine.backend.extensions, "backend extensions file")
        own["engine"]["backend"]["extensions"] = str(extensions)
    if dialog.ssd is not None:
        forecast = _located(
            folder, dialog.ssd.forecast_prefix_name, "forecast prefix", lambda path: (path / _FORECAST).is_file()
        )
        own["ssd-q1"]["forecast-prefix-name"] = str(forecast)
    return raw


def _located(folder: Path, name: str, what: str, fits: Callable[[Path], bool] = Path.is_file) -> Path:
    for path in _candidates(folder, name):
        if fits(path):
            return path
    raise BundleError(f"The {what} '{PureWindowsPath(name).name or name}' of {folder.name} is missing.")


def _candidates(folder: Path, name: str) -> Iterator[Path]:
    """Yield the possible paths of the file that the configuration calls `name`, the most probable first."""
    yield folder / name
    relative = Path(*PureWindowsPath(name).parts)  # authors write both kinds of slashes
    for base in (folder, *folder.parents):
        yield base / relative
    yield folder / relative.name
    yield folder  # a forecast prefix is usually in the configuration's folder


def _check_binary(path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            file.seek(-min(size, max(8192, min(size // 64, 1 << 20))), 2)
            end = file.read()
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {error.strerror}.") from error
    if size == 0:
        raise BundleError(f"{path.name} is empty.")
    if start.startswith(b"version https://git-lfs"):
        raise BundleError(f"{path.name} is a Git LFS pointer, not the model. Download the model with `git lfs pull`.")
    if not end.strip(b"\0"):
        raise BundleError(f"{path.name} ends with zeros only: its download was not finished. Download it again.")


def _prompt_width(folder: Path, context: int) -> int:
    """The width in the graph names (`ar128_cl4096_1_of_3`) in the metadata of newer exports, else an estimate."""
    for path in (folder / "metadata.json", folder / "metadata.yaml"):
        if path.is_file() and (widths := _GRAPH_NAME.findall(path.read_bytes())):
            return max(map(int, widths))
    return min(_USUAL_WIDTH, context // 4)


class _AddedToken(Struct):
    id: int
    content: str


class _TokenizerFile(Struct):
    added_tokens: list[_AddedToken] = []


def _added_tokens(path: Path) -> dict[int, str]:
    return {token.id: token.content for token in read_json(path, _TokenizerFile).added_tokens}


def _special_tokens(tokenizer: Path, dialog: _Dialog) -> dict[str, Any]:
    """`bos_token` and `eos_token` for the template of a bundle without a tokenizer_config.json."""
    names = _added_tokens(tokenizer)
    ids = {"bos_token": dialog.context.bos_token, "eos_token": dialog.context.end_ids[0]}
    return {role: names[index] for role, index in ids.items() if index in names}
