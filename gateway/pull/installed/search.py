"""Searches the folders of other programs for models: bundles that can be served in place, and GGUF files as sources.

It reads directories, small configuration files and the first bytes of GGUF files, within limits, and writes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from gateway.builder.architectures.find import GGUF_ARCHITECTURES
from gateway.bundles.identify import SOURCES, Found, Layout, identify
from gateway.bundles.preflight.preflight import Machine
from gateway.errors import BundleError, quote
from gateway.pull.config_edit import table_text
from gateway.pull.install import require_fit
from gateway.pull.installed.gguf_head import LATER_PART, read_gguf_head
from gateway.pull.installed.ollama import ollama_models
from gateway.pull.installed.programs import OLLAMA, Program
from gateway.pull.names import model_name

_DEEPEST = 6  # folders below that of the program
_MOST_FOLDERS = 5000  # of one program
_BUNDLES = {"genai_config.json", "genie_config.json"}
_CONFIGURATIONS = _BUNDLES | {"config.json", "manifest.json"}
_WEIGHTS = (".gguf", ".dlc", ".bin", ".onnx", ".safetensors")


class Installed(Struct, frozen=True, kw_only=True):
    """A model on the disk. `catalog --installed --json` prints all fields.

    Args:
        program: the program that has it.
        name: a name for the gateway's configuration.
        path: the bundle's folder, or the GGUF file.
        layout: see gateway/bundles/identify.py.
        bytes: of its files.
        table: the `[models."NAME"]` table that serves it where it is. "": the gateway cannot serve it.
        problem: why it cannot, with the next step.
    """

    program: str
    name: str
    path: str
    layout: Layout
    bytes: int
    table: str = ""
    problem: str = ""


def find_installed(programs: Iterable[Program], machine: Callable[[], Machine] = Machine) -> list[Installed]:
    """The models in these folders, by program and path. Names are unique.

    Args:
        machine: what a bundle must fit. Called only for bundles that state what they were compiled for.
    """
    found: list[Installed] = []
    names: set[str] = set()
    for program in programs:
        for path in _paths(program):
            model = _examine(program.name, path, names, machine)
            if model is not None:
                names.add(model.name)
                found.append(model)
    return found


def _paths(program: Program) -> Iterator[tuple[str, Path]]:
    """A name and the folder of a bundle or the file of weights, for each candidate."""
    if program.name == OLLAMA:
        yield from ollama_models(program.folder)
        return
    budget = [_MOST_FOLDERS]
    for folder, files in _model_folders(program.folder, _DEEPEST, budget):
        weights = [name for name in files if name.lower().endswith(".gguf")]
        if weights and not _BUNDLES & set(files):
            yield from ((name, folder / name) for name in weights if not _is_part(name))
        else:
            yield _title(folder, program.folder), folder


def _model_folders(folder: Path, depth: int, budget: list[int]) -> Iterator[tuple[Path, list[str]]]:
    """Each folder with files of a model, and its files. Folders in it are not searched, and links are not followed."""
    budget[0] -= 1
    if budget[0] < 0:
        return
    try:
        with os.scandir(folder) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        files = [entry.name for entry in listed if entry.is_file()]
    except OSError:  # of another user
        return
    if _CONFIGURATIONS & set(files) or any(name.lower().endswith(_WEIGHTS) for name in files):
        yield folder, files
    elif depth:
        for entry in listed:
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):  # a hidden one is not complete
                yield from _model_folders(Path(entry.path), depth - 1, budget)


def _is_part(name: str) -> bool:
    """True for the later parts of a split file, and for the part of a model that reads pictures."""
    return bool(LATER_PART.search(name)) or "mmproj" in name.lower()


def _title(folder: Path, root: Path) -> str:
    """The name of the nearest folder that says more than a version: `.../qwen2.5-7b-instruct-qnn-npu-2/v2`."""
    parts = [part for part in folder.relative_to(root).parts if not re.fullmatch(r"v\d+|models?|\d+", part.lower())]
    return parts[-1] if parts else folder.name


def _examine(
    program: str, candidate: tuple[str, Path], names: set[str], machine: Callable[[], Machine]
) -> Installed | None:
    """The model, or None if the folder holds none."""
    title, path = candidate
    name = _unique(model_name(title.replace(":", "-")), names)
    found = _bundle(path, name, machine) if path.is_dir() else _gguf(path)
    if found.layout == "unknown" and not found.problem:
        return None
    key = "source" if found.layout in SOURCES else "path"
    return Installed(
        program=program,
        name=name,
        path=str(found.path),
        layout=found.layout,
        bytes=_size(found.path),
        table="" if found.problem else table_text(name, {key: str(found.path.absolute())}),
        problem=found.problem,
    )


class _Examined(NamedTuple):
    path: Path
    layout: Layout
    problem: str


def _gguf(file: Path) -> _Examined:
    head = read_gguf_head(file)
    return _Examined(file, "gguf", "It is no GGUF file." if head is None else _unbuildable(head.architecture))


def _bundle(folder: Path, name: str, machine: Callable[[], Machine]) -> _Examined:
    try:
        found = identify(folder)
    except BundleError as error:
        return _Examined(folder, "unknown", error.message)
    problem = f"It {found.refusal}" if found.refusal else ""
    if found.layout == "unknown":
        problem = ""
    elif not problem and found.layout not in SOURCES:
        problem = _misfit(found, name, machine)
    return _Examined(Path(str(found.root)), found.layout, problem)


def _misfit(found: Found, name: str, machine: Callable[[], Machine]) -> str:
    """Why the bundle cannot run on this machine; ""."""
    try:
        require_fit(found, name, machine)
    except BundleError as error:
        return error.message
    return ""


def _size(path: Path) -> int:
    """Bytes of a file, or of the files directly in a folder."""
    try:
        files = [path] if path.is_file() else list(path.iterdir())
        return sum(file.stat().st_size for file in files if file.is_file())
    except OSError:
        return 0


def _unbuildable(architecture: str) -> str:
    if not architecture or architecture in GGUF_ARCHITECTURES:
        return ""
    return (
        f"The gateway builds {', '.join(GGUF_ARCHITECTURES)} from a GGUF file, and this one is {quote(architecture)}. "
        "Serve it with its own program, and enter that as a model with engine = 'upstream'."
    )


def _unique(name: str, names: set[str]) -> str:
    number = 2
    unique = name
    while unique in names:
        unique, number = f"{name}-{number}", number + 1
    return unique
