"""Identifies the published layout of a model folder or archive by its small files, before a native library reads it.

Works on a folder and on an opened zip file (`zipfile.Path`), so that a download can be refused before it is unpacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.resources.abc import Traversable
from typing import Any, Literal, get_args

from msgspec import Struct

from gateway.bundles.encoder.bundle import ENCODER_FILE, Kind
from gateway.bundles.json_file import read_json, read_small_file
from gateway.errors import BundleError

Layout = Literal[
    "graph",  # onnxruntime-genai's layout with one graph: for the CPU
    "pipeline",  # onnxruntime-genai's layout with stages: our builds, Olive, Foundry Local, AI Hub's ORT-GenAI export
    "genie",  # Genie's configuration and context binaries: AI Hub, AI Dev Home
    "text-encoder",  # our build of an encoder: for embeddings, or for scores of documents
    "package",  # onnxruntime-genai's model package: variants in folders
    "gguf",  # weights for `source`
    "huggingface",  # weights for `source`
    "dlc",  # one EPContext node of type dlc: Genie inside the QNN provider
    "gpu",  # compiled for the GPU
    "vision",  # its graphs take embeddings of images
    "encoder",  # a compiled encoder, for embeddings
    "binaries",  # context binaries without a configuration
    "unknown",
]
#: Layouts that `source` takes, in place of `path`.
SOURCES = frozenset({"gguf", "huggingface"})

#: What AI Hub writes next to a Genie configuration, today and before. It can have megabytes, so it is only searched.
METADATA = ("metadata.json", "metadata.yaml")
_SUPPORTS_VISION = re.compile(rb"""supports_vision"?\s*+:\s*+[Tt]rue""")
_MOST_ENTRIES = 4096  # of one folder
_OTHER_MODEL = "`npu-gateway catalog` lists models that the gateway can run."

#: layout -> why it is refused, and the next step
_REFUSALS: dict[Layout, str] = {
    "dlc": "is a .dlc model for Genie inside the QNN provider, which the gateway does not run. Take the model's "
    "'genie' or 'geniex' download instead. " + _OTHER_MODEL,
    "gpu": "is compiled for the GPU (QnnGpu), and the gateway uses the NPU. Take the model's download for the NPU. "
    + _OTHER_MODEL,
    "vision": "is a vision model: its graphs take embeddings of images, and the gateway serves text models. "
    + _OTHER_MODEL,
    "encoder": "is a compiled encoder for embeddings, which the gateway does not serve yet. " + _OTHER_MODEL,
    "binaries": "has context binaries but no genie_config.json, so nothing describes its graphs. Export the model "
    "again, or add the configuration from its model card. " + _OTHER_MODEL,
    "unknown": "is no model bundle: it has no genai_config.json, genie_config.json, config.json, manifest.json or "
    ".gguf file. " + _OTHER_MODEL,
}


class Found(Struct, frozen=True, kw_only=True):
    """The layout, and the folder with its configuration: the given one, or the only folder in it."""

    layout: Layout
    root: Traversable

    @property
    def refusal(self) -> str | None:
        """Why the gateway cannot serve this layout, with the next step; None: it can. Starts with a verb."""
        return _REFUSALS.get(self.layout)


def identify(folder: Traversable) -> Found:
    """Identify the layout of `folder`: a `Path`, or a `zipfile.Path`.

    Raises BundleError if a configuration file cannot be read.
    """
    root = _root(folder)
    return Found(layout=_layout(root, _names(root)), root=root)


def require_servable(folder: Traversable) -> Found:
    """As `identify`. Raises BundleError with the refusal."""
    found = identify(folder)
    if found.refusal is not None:
        raise BundleError(f"{folder.name} {found.refusal}")
    return found


def refuse_unservable(folder: Traversable) -> Found:
    """As `identify`. Raises BundleError for a layout that is known and not served. Its reader names other faults."""
    found = identify(folder)
    if found.refusal is not None and found.layout != "unknown":
        raise BundleError(f"{folder.name} {found.refusal}")
    return found


def refuse_vision(folder: Traversable, config: dict[str, Any]) -> None:
    """Raise BundleError if a Genie configuration in `folder` is that of a vision model."""
    if _sees_images(config, folder):
        raise BundleError(f"{folder.name} {_REFUSALS['vision']}")


def _root(folder: Traversable) -> Traversable:
    """Published archives hold one folder with all files."""
    if _configurations(_names(folder)):
        return folder
    inner = [entry for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))]
    return inner[0] if len(inner) == 1 and not _has_model(_names(folder)) else folder


def _configurations(names: Iterable[str]) -> set[str]:
    return {"genai_config.json", "genie_config.json", "config.json", "manifest.json", ENCODER_FILE} & set(names)


def _has_model(names: Iterable[str]) -> bool:
    return any(name.endswith((".onnx", ".bin", ".dlc", ".gguf", ".safetensors")) for name in names)


def _layout(root: Traversable, names: frozenset[str]) -> Layout:
    if ENCODER_FILE in names and _read(root, ENCODER_FILE).get("kind") in get_args(Kind):
        return "text-encoder"
    if "genai_config.json" in names:
        return _genai(_read(root, "genai_config.json"), names)
    if "genie_config.json" in names:
        return _genie(_read(root, "genie_config.json"), root)
    if "config.json" in names:
        content = _read(root, "config.json")
        if isinstance(content.get("dialog"), dict):
            return _genie(content, root)
        if any(name.endswith(".safetensors") for name in names):
            return "huggingface"
    if "manifest.json" in names and isinstance(_read(root, "manifest.json").get("components"), dict):
        return "package"
    return _by_suffix(names)


def _by_suffix(names: frozenset[str]) -> Layout:
    suffixes = {name.rpartition(".")[2] for name in names}
    if "gguf" in suffixes:
        return "gguf"
    if "dlc" in suffixes:
        return "dlc"
    if "bin" in suffixes:
        return "encoder" if "onnx" in suffixes else "binaries"
    return "unknown"


def _genai(content: dict[str, Any], names: frozenset[str]) -> Layout:
    model = _table(content, "model")
    decoder = _table(model, "decoder")
    if any(_table(model, part) for part in ("vision", "speech", "embedding")):
        return "vision"
    options = dict(_provider_options(decoder))
    if "qnngpu" in options.get("backend_path", "").lower() or options.get("backend_type", "").lower() == "gpu":
        return "gpu"
    if options.get("genie_model", "").lower() in ("true", "1") or any(name.endswith(".dlc") for name in names):
        return "dlc"
    return "pipeline" if decoder.get("pipeline") else "graph"


def _genie(content: dict[str, Any], root: Traversable) -> Layout:
    return "vision" if _sees_images(content, root) else "genie"


def _sees_images(config: dict[str, Any], root: Traversable) -> bool:
    """True if the dialog takes embeddings, or if the metadata says that the model takes images."""
    texts = (read_small_file(root.joinpath(name)) for name in METADATA if root.joinpath(name).is_file())
    try:
        return bool(_table(config, "dialog").get("embedding")) or any(map(_SUPPORTS_VISION.search, texts))
    except OSError as error:
        raise BundleError(f"{root.name}: its metadata cannot be read: {error.strerror or error}.") from error


def _provider_options(value: Any) -> Iterator[tuple[str, str]]:
    """Every option of every provider, also inside the stages of a pipeline."""
    match value:
        case {"qnn": dict(options)}:
            yield from ((str(name), str(option)) for name, option in options.items())
        case dict():
            for inner in value.values():
                yield from _provider_options(inner)
        case list():
            for inner in value:
                yield from _provider_options(inner)


def _table(content: dict[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def _entries(folder: Traversable) -> Iterator[Traversable]:
    try:
        for number, entry in enumerate(folder.iterdir()):
            if number == _MOST_ENTRIES:
                return
            yield entry
    except OSError as error:
        raise BundleError(f"{folder.name} cannot be read: {error.strerror}.") from error


def _names(folder: Traversable) -> frozenset[str]:
    """The names of the files directly in `folder`."""
    return frozenset(entry.name for entry in _entries(folder) if entry.is_file())


def _read(root: Traversable, name: str) -> dict[str, Any]:
    return read_json(root.joinpath(name), dict[str, Any])
