"""Reads a bundle: its genai_config.json, its tokenizer and its chat template.

The layout is onnxruntime-genai's. Our builder and Olive write it. Windows ML and Foundry Local use it.
Reading needs no native library, so the gateway process can do it. `graph_files.py` checks the graphs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gateway.bundles.genai_config import GenaiConfig, read_genai_config
from gateway.bundles.identify import refuse_unservable
from gateway.bundles.json_file import read_optional_object, read_small_file, readable
from gateway.bundles.model_package import shared_folder, variant_folder
from gateway.errors import BundleError


class Bundle(Struct, frozen=True, kw_only=True):
    """What a bundle says about its model, before a session is opened."""

    folder: Path
    config: GenaiConfig
    tokenizer_path: Path  # tokenizer.json
    tokenizer_config: dict[str, Any]
    chat_template: str | None

    @property
    def end_ids(self) -> tuple[int, ...]:
        return tuple(self.config.eos_ids)

    @property
    def graph_paths(self) -> tuple[Path, ...]:
        """The graph file, or one file per pipeline stage, in the order of the stages."""
        decoder = self.config.decoder
        names = [stage.filename for stage in decoder.stages] or [decoder.filename]
        return tuple(self.folder / name for name in names)


def load_bundle(path: Path, tokenizer_folder: str = "") -> Bundle:
    """Read the bundle in folder `path`, but not its graphs: `check_graph_files` checks those.

    In a model package, the bundle is the variant for the NPU.

    Args:
        tokenizer_folder: the configured folder of tokenizer.json; "": where the bundle says.
    Raises BundleError when the configuration or the tokenizer is missing or malformed.
    """
    with readable(path):
        return _load(path, tokenizer_folder)


def _load(path: Path, tokenizer_folder: str) -> Bundle:
    if not path.is_dir():
        raise BundleError(f"There is no model bundle at {path.name}.")
    path = variant_folder(path)
    refuse_unservable(path)
    config = read_genai_config(path)
    shared = shared_folder(path, config.tokenizer_dir)
    tokenizer = Path(tokenizer_folder) if tokenizer_folder else shared or path / config.tokenizer_dir
    tokenizer_config = read_optional_object(tokenizer / "tokenizer_config.json")
    bundle = Bundle(
        folder=path,
        config=config,
        tokenizer_path=tokenizer / "tokenizer.json",
        tokenizer_config=tokenizer_config,
        chat_template=find_chat_template(tokenizer, tokenizer_config),
    )
    if not bundle.tokenizer_path.is_file():
        raise no_tokenizer(path.name, tokenizer_folder)
    return bundle


def no_tokenizer(bundle: str, folder: str) -> BundleError:
    if folder:
        return BundleError(f"{bundle}: the folder of its key `tokenizer`, {Path(folder).name}, has no tokenizer.json.")
    return BundleError(
        f"{bundle} has no tokenizer.json. Get it from the original model (`hf download ORG/MODEL tokenizer.json "
        'tokenizer_config.json --local-dir models/FOLDER`) and add `tokenizer = "FOLDER"` to the model\'s table in '
        "config.toml."
    )


def find_chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str | None:
    """The text of chat_template.jinja in `folder`, else `chat_template` of tokenizer_config.json, else None.

    Of several named templates, "default" is used, else the first one.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return read_small_file(path).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{folder.name}: chat_template.jinja cannot be read: {error}.") from error
    try:
        found = msgspec.convert(tokenizer_config.get("chat_template"), str | list[_NamedTemplate] | None)
    except msgspec.ValidationError as error:
        raise BundleError(f"{folder.name}: tokenizer_config.json has no readable chat_template: {error}.") from error
    if not isinstance(found, list):
        return found
    named = {entry.name: entry.template for entry in found}
    return named.get("default") or next(iter(named.values()), None)


class _NamedTemplate(Struct):
    name: str
    template: str
