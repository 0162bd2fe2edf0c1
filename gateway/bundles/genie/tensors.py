"""What AI Hub's metadata states about the tensors of its graphs: shape, type, scale.

    metadata.json  model_files    {graph or binary: {"inputs": {name: {...}}, "outputs": {name: {...}}}}   today
    metadata.yaml  components     {graph: ...}                                                             older

The binaries are right where both differ: nothing here decides how a graph runs.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gateway.bundles.json_file import read_json, read_small_file
from gateway.errors import BundleError

_log = logging.getLogger(__name__)
_LONGEST_JSON = 16 * 1024 * 1024  # bytes; typed, so it takes little memory
_LONGEST_YAML = 1024 * 1024  # the parser takes 5 s for it


class Scale(Struct, frozen=True):
    """value = (code - zero) * scale. Newer files have the zero point, older ones the negative of it as `offset`."""

    scale: float | None = None
    zero_point: int | None = None
    offset: int | None = None

    @property
    def zero(self) -> int | None:
        return self.zero_point if self.offset is None else -self.offset


class StatedTensor(Struct, frozen=True):
    """`dtype` is a numpy type name; "" and (): not stated."""

    shape: tuple[int, ...] = ()
    dtype: str = ""
    quantization_parameters: Scale | None = None


class StatedGraph(Struct, frozen=True):
    """The tensors of one graph by their names."""

    inputs: dict[str, StatedTensor] = {}
    outputs: dict[str, StatedTensor] = {}


class _Metadata(Struct):
    model_files: dict[str, msgspec.Raw] = {}
    components: dict[str, msgspec.Raw] = {}


def read_tensors(folder: Path, *, with_yaml: bool = False) -> dict[str, StatedGraph]:
    """The stated graphs of the bundle in `folder`, by the name of the graph or of its binary. {} without metadata.

    Args:
        with_yaml: read metadata.yaml too, which takes seconds.
    """
    metadata = _Metadata()
    try:
        if (folder / "metadata.json").is_file():
            metadata = read_json(folder / "metadata.json", _Metadata, longest=_LONGEST_JSON)
        elif with_yaml and (folder / "metadata.yaml").is_file():
            metadata = _read_yaml(folder / "metadata.yaml")
    except (BundleError, OSError, ValueError, RecursionError) as error:
        _log.warning("%s: its metadata is not used, because it cannot be read: %s", folder.name, error)
    found = {}
    for name, content in (metadata.model_files | metadata.components).items():
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # other kinds of files
            found[name] = msgspec.json.decode(content, type=StatedGraph)
    return found


def _read_yaml(path: Path) -> _Metadata:
    import yaml  # the gateway process does not need it

    try:
        content: Any = yaml.safe_load(read_small_file(path, _LONGEST_YAML))
        if _expanded(content, {}) > _LONGEST_JSON:
            raise ValueError(f"with its aliases it has more than {_LONGEST_JSON >> 20} MiB")
        return msgspec.json.decode(msgspec.json.encode(content), type=_Metadata)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _expanded(node: Any, known: dict[int, int]) -> int:
    """About the characters of a value as JSON, which repeats what YAML names by an alias. Raises RecursionError."""
    if id(node) not in known:
        match node:
            case str():
                size = len(node)
            case dict():
                size = sum(_expanded(each, known) for pair in node.items() for each in pair)
            case list() | tuple() | set():
                size = sum(_expanded(each, known) for each in node)
            case _:
                size = 0
        known[id(node)] = 1 + size
    return known[id(node)]
