"""The part of a Genie configuration that the gateway reads, with its types.

The exporters differ: AI Hub copies `bos-token` from the model, also null; others write -1 for a model without a begin
token. `eos-token` is one id or several. Genie knows more keys than these, and gets them unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from gateway.bundles.identify import refuse_unservable, refuse_vision
from gateway.bundles.json_file import read_json
from gateway.errors import BundleError

#: What a configuration is called: by AI Hub, and by AI Dev Home.
NAMES = ("genie_config.json", "config.json")

TokenId = Annotated[int, Meta(ge=0)]
_MaybeTokenId = Annotated[int, Meta(ge=-1)] | None  # -1, null and absent: the model has none


class Context(Struct, rename="kebab"):
    size: Annotated[int, Meta(ge=2)]
    n_vocab: Annotated[int, Meta(ge=1)]
    eos_token: TokenId | Annotated[list[TokenId], Meta(min_length=1)]
    bos_token: _MaybeTokenId = None
    eot_token: _MaybeTokenId = None

    @property
    def bos_id(self) -> int | None:
        return None if self.bos_token == -1 else self.bos_token

    @property
    def eos_ids(self) -> list[int]:
        return [self.eos_token] if isinstance(self.eos_token, int) else self.eos_token


class Tokenizer(Struct):
    path: str


class Binary(Struct, rename="kebab"):
    ctx_bins: Annotated[list[str], Meta(min_length=1)]


class Model(Struct):
    binary: Binary


class Backend(Struct):
    type: Literal["QnnHtp"]
    extensions: str | None = None
    htp: dict[str, Any] | None = field(default=None, name="QnnHtp")


class Engine(Struct):
    backend: Backend
    model: Model


class Forecast(Struct, rename="kebab"):
    forecast_prefix_name: str


class Dialog(Struct, rename={"ssd": "ssd-q1", "stops": "stop-sequence", "max_tokens": "max-num-tokens"}):
    type: Literal["basic", "ssd-q1"]  # the types with one engine and one stream
    context: Context
    tokenizer: Tokenizer
    engine: Engine
    sampler: dict[str, Any] = field(default_factory=dict)
    ssd: Forecast | None = None
    stops: list[str] = field(default_factory=list)
    max_tokens: int = 0  # of one answer; 0 and below: no limit


class _Config(Struct):
    dialog: Dialog


def find_config(path: Path) -> Path:
    """The configuration that `path` names: the file itself, or the one in this folder or in the only folder in it.

    Raises BundleError if there is none.
    """
    if path.is_file():
        return path
    if path.is_dir():
        root = refuse_unservable(path).root
        found = next((root.joinpath(name) for name in NAMES if root.joinpath(name).is_file()), None)
        if isinstance(found, Path):
            return found
    names = " or ".join(NAMES)
    raise BundleError(
        f"There is no Genie configuration at {path.name}; `path` names the bundle's folder, or its {names}."
    )


def bundle_folder(path: Path) -> Path:
    """The folder that `path` names: itself, or that of its configuration. Does not read the disk."""
    return path.parent if path.suffix == ".json" else path


def read_config(path: Path) -> tuple[dict[str, Any], Dialog]:
    """The whole configuration in the file `path`, and what the gateway reads of it. Raises BundleError."""
    raw = read_json(path, dict[str, Any])
    refuse_vision(path.parent, raw)
    try:
        dialog = msgspec.convert(raw, _Config).dialog
    except msgspec.ValidationError as error:
        raise BundleError(f"{path.name} is not a Genie configuration that can be served: {error}.") from error
    if dialog.type == "ssd-q1" and dialog.ssd is None:
        raise BundleError(f"{path.name}: a dialog of type 'ssd-q1' needs its table `ssd-q1`.")
    return raw, dialog
