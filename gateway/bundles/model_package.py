"""Finds the variant for the NPU in a model package of ONNX Runtime (a folder with manifest.json), and its shared files.

    manifest.json        components {"model": the component, or the folder of its component.json}
    VARIANT/             one for each chip or runtime: genai_config.json and its graphs
    shared_assets/sha256-<hex>/    the tokenizer, which genai_config.json calls "sha256:<hex>"

The gateway reads a component inside the manifest and one in a folder, as Olive writes it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gateway.bundles.json_file import read_json
from gateway.errors import BundleError

_MANIFEST = "manifest.json"
_NPU = "QNNExecutionProvider"
_ASSET = re.compile(r"(sha256):([0-9a-f]{64})((?:/[^/]+)*)")
_MOST_PARENTS = 4  # folders from a variant up to its package


class _Variant(Struct, kw_only=True):
    variant_directory: str = ""  # "": the variant's name
    ep: str = ""
    device: str = ""
    compatibility_string: str = ""


class _Component(Struct, kw_only=True):
    variants: dict[str, _Variant]


class _Manifest(Struct, kw_only=True):
    components: dict[str, str | dict[str, Any]]
    shared_assets: dict[str, str] = {}


class NpuVariant(Struct, frozen=True, kw_only=True):
    """A variant for the NPU. `soc` and `architecture`: the chip that it was compiled for; None if not stated."""

    folder: Path
    soc: int | None
    architecture: int | None


def npu_variants(folder: Path) -> list[NpuVariant]:
    """The variants for the NPU; empty if `folder` is no model package. Raises BundleError if it cannot be read."""
    if not _is_package(folder):
        return []
    return [
        NpuVariant(folder=path, soc=soc, architecture=architecture)
        for path, variant in _variants(folder)
        if variant.ep == _NPU and variant.device.lower() in ("npu", "")
        for soc, architecture in [compiled_target(variant.compatibility_string)]
    ]


def compiled_target(compatibility: str) -> tuple[int | None, int | None]:
    """Chip and architecture in the QNN provider's "v2:6:2.51.0:5.51.0:73:60:0:0": fields 5 and 4. 0: unknown."""
    fields = compatibility.split(":")
    if len(fields) < 6 or not (fields[4].isdecimal() and fields[5].isdecimal()):
        return None, None
    return int(fields[5]) or None, int(fields[4]) or None


def variant_folder(folder: Path) -> Path:
    """The folder with genai_config.json: `folder` itself, or the variant for the NPU if it is a model package.

    Raises BundleError if the package has no variant for the NPU or more than one, or cannot be read.
    """
    if not _is_package(folder):
        return folder
    usable = [variant.folder for variant in npu_variants(folder)]
    if len(usable) == 1:
        return usable[0]
    if not usable:
        runtimes = ", ".join(sorted({variant.ep for _, variant in _variants(folder) if variant.ep})) or "no variant"
        raise BundleError(
            f"{folder.name} is a model package for other runtimes ({runtimes}). Take its variant for the NPU ({_NPU})."
        )
    names = ", ".join(path.relative_to(folder).as_posix() for path in usable)
    raise BundleError(
        f"{folder.name} is a model package with several variants for the NPU: {names}. Add the one for this chip to "
        "the model's `path`, after the package's folder."
    )


def _is_package(folder: Path) -> bool:
    return (folder / _MANIFEST).is_file() and not (folder / "genai_config.json").exists()


def shared_folder(variant: Path, name: str) -> Path | None:
    """The folder of a shared asset "sha256:<hex>[/sub/folder]". None if `name` is another path.

    Args:
        variant: a folder inside the package.
    Raises BundleError if no package contains `variant`, or the asset lies outside the package.
    """
    if not name.startswith("sha256:"):
        return None
    asset = _ASSET.fullmatch(name)
    package = next((path for path in variant.parents[:_MOST_PARENTS] if (path / _MANIFEST).is_file()), None)
    if asset is None or package is None:
        raise BundleError(f"{variant.name}: tokenizer_dir needs a model package with this shared asset.")
    kind, digest, tail = asset.groups()
    moved = read_json(package / _MANIFEST, _Manifest).shared_assets.get(f"{kind}:{digest}")
    root = _inside(package, package, moved or f"shared_assets/{kind}-{digest}")
    return _inside(package, root, f".{tail}")


def _variants(package: Path) -> list[tuple[Path, _Variant]]:
    """Each variant with its folder. onnxruntime-genai takes packages of one component only."""
    components = read_json(package / _MANIFEST, _Manifest).components
    if len(components) != 1:
        raise BundleError(
            f"{package.name} is a model package of {len(components)} components, and the gateway reads one."
        )
    ((_, content),) = components.items()
    if isinstance(content, str):
        path = _inside(package, package, content)
        file = path / "component.json" if path.is_dir() else path
        folder, component = file.parent, read_json(file, _Component)
    else:
        folder, component = package, _inline(package, content)
    return [
        (_inside(package, folder, variant.variant_directory or name), variant)
        for name, variant in component.variants.items()
    ]


def _inline(package: Path, content: dict[str, Any]) -> _Component:
    try:
        return msgspec.convert(content, _Component)
    except msgspec.ValidationError as error:
        raise BundleError(f"{package.name}: {_MANIFEST} cannot be read: {error}.") from error


def _inside(package: Path, folder: Path, name: str) -> Path:
    """The path `name` in `folder`. Raises BundleError if it lies outside the package."""
    path = Path(os.path.normpath(folder / name.replace("\\", "/")))
    if "\0" in name or not path.is_relative_to(os.path.normpath(package)):
        raise BundleError(f"{package.name}: {_MANIFEST} names a path outside the package.")
    return path
