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
from gateway.bundles.hashes import CHECKED_FILE
from gateway.bundles.identify import refuse_unservable
from gateway.bundles.json_file import read_optional_object, read_small_file, readable
from gateway.bundles.model_package import shared_folder, variant_folder
from gateway.errors import BundleError

ROWS_FILE = ".rows.json"  # worker/decoders/row_record.py
PACKED_FILES = ".packed-"  # their names begin so: worker/decoders/packed.py
#: The names begin so, also those of unfinished files that a killed program has left.
_OF_MACHINE = (CHECKED_FILE, f".{CHECKED_FILE}.", ROWS_FILE, PACKED_FILES)


def is_of_machine(name: str) -> bool:
    """True for a file or folder that this machine has made of a bundle and only uses there. A copy has none."""
    return name.startswith(_OF_MACHINE)


class Bundle(Struct, frozen=True, kw_only=True):
    """What a bundle says about its model, before a session is opened."""

    folder: Path
    config: GenaiConfig
    tokenizer_path: Path  # tokenizer.json
    tokenizer_config: dict[str, Any]
    chat_template: str | None
    tool_template: str | None = None  # the template for a chat with tools; None: `chat_template`

    @property
    def end_ids(self) -> tuple[int, ...]:
        return tuple(self.config.eos_ids)

    @property
    def sampling(self) -> dict[str, float]:
        """What the files recommend for a request that does not choose, by the name of the key in config.toml."""
        return self.config.search.recommended

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
    templates = find_chat_templates(tokenizer, tokenizer_config)
    bundle = Bundle(
        folder=path,
        config=config,
        tokenizer_path=tokenizer / "tokenizer.json",
        tokenizer_config=tokenizer_config,
        chat_template=templates.default,
        tool_template=templates.tool_use,
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


class ChatTemplates(Struct, frozen=True):
    """The templates of a model. `tool_use` is for a chat with tools; None: `default` has tools too."""

    default: str | None = None
    tool_use: str | None = None


def find_chat_templates(folder: Path, tokenizer_config: dict[str, Any]) -> ChatTemplates:
    """The templates in chat_template.jinja and additional_chat_templates/, else in tokenizer_config.json, else in
    chat_template.json.

    Of several named templates, "default" and "tool_use" are used. Without "default" the first one is the default.
    """
    named = (
        _template_files(folder)
        or _named(folder.name, "tokenizer_config.json", tokenizer_config.get("chat_template"))
        or _named(
            folder.name,
            "chat_template.json",
            read_optional_object(folder / "chat_template.json").get("chat_template"),
        )
    )
    default = named.get("default", next(iter(named.values()), None))
    return ChatTemplates(default, named.get("tool_use"))


def _template_files(folder: Path) -> dict[str, str]:
    default = folder / "chat_template.jinja"
    others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    files = {path: "default" for path in (default,) if path.is_file()} | {path: path.stem for path in others}
    return {name: _template_text(path) for path, name in files.items()}


def _template_text(path: Path) -> str:
    try:
        return read_small_file(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path.parent.name}: {path.name} cannot be read: {error}.") from error


def _named(folder: str, file: str, value: Any) -> dict[str, str]:
    """The templates in a value of a JSON file: a text, an object, or a list of objects with `name` and `template`."""
    try:
        found = msgspec.convert(value, str | dict[str, str] | list[_NamedTemplate] | None)
    except msgspec.ValidationError as error:
        raise BundleError(f"{folder}: {file} has no readable chat_template: {error}.") from error
    match found:
        case str():
            return {"default": found}
        case list():
            return {entry.name: entry.template for entry in found}
    return found or {}


class _NamedTemplate(Struct):
    name: str
    template: str
