"""What is in the models folder, and how a model leaves it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from msgspec import Struct
from msgspec.structs import asdict, replace

from gateway.bundles.disk import folder_bytes
from gateway.bundles.genie.config import bundle_folder
from gateway.bundles.identify import identify
from gateway.bundles.origin import origin_file, read_origin
from gateway.bundles.replace import exclusive, finish_replacement
from gateway.bundles.stamp import npu_folder, read_stamp, unfinished_folder, unfinished_folders
from gateway.config.limits import listed_models
from gateway.config.tables import BundleModel, Config, LocalModel
from gateway.errors import BundleError, ConfigError, quote
from gateway.pull.catalog.entry import same_key
from gateway.pull.config_edit import UserConfig, find_user_config, remove_model
from gateway.pull.job import WORK, gguf_path, tokenizer_folder, work_folder
from gateway.pull.names import check_model_name


class Stored(Struct, frozen=True, kw_only=True):
    """One model on the disk.

    Args:
        state: "interrupted": a download that the same pull continues. "elsewhere": served where it is. "unfinished":
            the pieces of a bundle for the NPU, which the gateway continues to build while it runs.
        numbers: the number format of the weights of a bundle that was built here, and what it changes; "": unknown.
        source: what it was pulled from or built from; "": unknown.
    """

    name: str
    state: Literal["ready", "interrupted", "elsewhere", "damaged", "unfinished"]
    bytes: int
    layout: str = ""
    source: str = ""
    licence: str = ""
    is_configured: bool = False
    numbers: str = ""

    def as_dict(self) -> dict[str, str | int | bool]:
        return asdict(self)


def stored(config: Config) -> list[Stored]:
    """Every model in the models folder, and every configured one that is elsewhere. Sorted by name."""
    return sorted(_stored(config), key=lambda each: each.name)


def _stored(config: Config) -> Iterator[Stored]:
    slots = dict(_slots(config))
    for path in {*slots, *_folders(config.models_dir)}:
        finish_replacement(path)
    inside = _folders(config.models_dir)
    for path in inside:
        yield _bundle(path, slots.get(path, path.name), path in slots)
    for path, name in slots.items():
        if path not in inside and path.is_dir():
            yield replace(_bundle(path, name, True), state="elsewhere")
    for path in _folders(config.models_dir / WORK):
        note = path / "url"
        source = note.read_text(encoding="utf-8") if note.is_file() else ""
        yield Stored(name=path.name, state="interrupted", bytes=folder_bytes(path), source=source)
    for path in unfinished_folders(config.models_dir):
        yield Stored(name=path.name, state="unfinished", bytes=folder_bytes(path))


def _folders(folder: Path) -> list[Path]:
    """The folders in `folder`, without hidden ones."""
    return [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."] if folder.is_dir() else []


def _slots(config: Config) -> Iterator[tuple[Path, str]]:
    """(folder or file of a bundle, name of its model) for each configured model."""
    for name, model in config.models.items():
        if isinstance(model, BundleModel) and model.path:
            path = Path(model.path)
            yield bundle_folder(path), name
            yield npu_folder(path), name


def _bundle(path: Path, name: str, is_configured: bool) -> Stored:
    origin, stamp = read_origin(path), read_stamp(path)
    try:
        found = identify(path)
    except BundleError:
        return Stored(name=name, state="damaged", bytes=folder_bytes(path), is_configured=is_configured)
    return Stored(
        name=name,
        state="ready",
        bytes=folder_bytes(path),
        layout=found.layout,
        source=origin.source if origin else stamp.source if stamp else "",
        licence=origin.licence if origin else "",
        is_configured=is_configured,
        numbers=stamp.numbers() if stamp else "",
    )


def remove(name: str, user: UserConfig) -> list[str]:
    """Remove the model's table and the files that a pull or a build made. Returns what was removed.

    The files of a model that is served where it is stay. Raises ConfigError if there is no model, if another model
    needs it, or if a folder was put there by hand.
    """
    config = user.config
    check_model_name(name)
    _check_unused(name, config)
    for folder in (config.models_dir / name, npu_folder(config.models_dir / name)):
        finish_replacement(folder)  # removes what a killed build left
    paths = [path for path in _paths(name, config) if path.exists()]
    _check_own(name, [path for path in paths if path.parent == config.models_dir and path.is_dir()])
    if name not in config.models and not paths:
        own = own_spelling(name, config)
        hint = f" Did you mean {own}?" if own != name else ""
        raise ConfigError(f"There is no model {quote(name)}.{hint} `npu-gateway list` shows the models on the disk.")
    removed = []
    with exclusive(work_folder(config.models_dir, name)):
        if name in find_user_config(user.path).config.models:
            remove_model(user, name)
            removed.append(f"[models.{name}] in {user.file}")
        for path in _paths(name, config):  # again: a pull may have ended in the meantime
            if path.exists():
                _remove(path)
                removed.append(str(path))
    return removed


def _paths(name: str, config: Config) -> list[Path]:
    bundle = config.models_dir / name
    weights = gguf_path(config.models_dir, name)
    made = (work_folder(config.models_dir, name), tokenizer_folder(config.models_dir, name))
    unfinished = unfinished_folder(npu_folder(bundle))
    paths = [bundle, npu_folder(bundle), weights, origin_file(weights), *made, unfinished]
    others = {folder for folder in (npu_folder(bundle), weights) if _is_model(folder, config)}
    return [path for path in paths if path not in others]


def _is_model(folder: Path, config: Config) -> bool:
    """True if a model has the name that a file of another model usually has: `NAME-npu` or `NAME.gguf`."""
    return folder.name in config.models or (folder.is_dir() and read_origin(folder) is not None)


def _check_unused(name: str, config: Config) -> None:
    users = [f"[models.{other}] fallback" for other, model in config.models.items() if model.fallback == name]
    own = getattr(config.models.get(name), "path", "") or None
    users += [f"[models.{other}] draft" for other, model in config.models.items() if getattr(model, "draft", "") == own]
    users += [where for where, model in listed_models(config.limits) if model == name]
    if config.default_model == name:
        users.append("default_model")
    if users:
        raise ConfigError(f"{quote(name)} is still named by {users[0]}. Change that first.")


def _check_own(name: str, folders: list[Path]) -> None:
    for folder in folders:
        if read_origin(folder) is None and read_stamp(folder) is None:
            raise ConfigError(f"{folder} was neither pulled nor built here, so it is not removed. Remove it yourself.")


def _remove(path: Path) -> None:
    """Remove a folder so that no other program sees a part of it, or a file."""
    try:
        if path.is_file():
            path.unlink()
            return
        with exclusive(path):
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be removed ({error.strerror or error}). Stop the gateway that uses it, and repeat "
            "the command."
        ) from error


def own_spelling(name: str, config: Config) -> str:
    """The name that a model of this machine has, if `name` is another spelling of it: "Qwen3-4B". Else `name`."""
    own = {*config.models, *(path.name for path in _folders(config.models_dir))}
    same = [each for each in own if same_key(each) == same_key(name)]
    return same[0] if name not in own and len(same) == 1 else name


def is_missing(config: Config, name: str) -> bool:
    """True if the model of that name must be pulled before it can be served."""
    model = config.models.get(name)
    if isinstance(model, LocalModel) and model.source:
        return False
    return model is None or (isinstance(model, BundleModel) and not Path(model.path).exists())
