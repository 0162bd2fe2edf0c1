"""The child process that makes a packed graph: `python -m gateway.worker.decoders.pack`. See packed.py.

ONNX Runtime saves the packed weights only together with all constants, so they are copied from that file into their
own. It finds them by a key that is made of their bytes, and not by the constant that names them. So one small constant
of the bundle's graph can name all of them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from gateway.bundles.bundle import PACKED_FILES
from gateway.bundles.disk import sync_folder, sync_tree
from gateway.child import serve_request
from gateway.errors import BundleError
from gateway.worker.decoders.onnx import SessionOptions, open_session
from gateway.worker.decoders.packed import PackRequest, checksum

_DATA = "packed.data"
_SAVE = {
    "session.optimized_model_external_initializers_file_name": _DATA,
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
    "session.save_external_prepacked_constant_initializers": "1",
}
_ALIGNMENT, _PIECE = 4096, 16 * 1024 * 1024


def pack(request: PackRequest) -> bool:
    """Make the file `out` and its weights. False: there is nothing to pack. Raises BundleError if it fails."""
    graph, out = Path(request.graph), Path(request.out)
    try:
        with TemporaryDirectory(prefix=PACKED_FILES, dir=out.parent) as scratch:
            saved = Path(scratch, "saved.onnx")
            open_session(graph, SessionOptions(threads=1, entries=_SAVE, save_to=saved))
            made = Path(scratch, out.name)
            if not _write(graph, saved, made, out.with_suffix(".bin").name):
                return False
            saved.unlink()
            (saved.parent / _DATA).unlink()
            sync_tree(Path(scratch))
            for suffix in (".bin", ".onnx"):  # the graph last: without it the weights are not used
                made.with_suffix(suffix).replace(out.with_suffix(suffix))
        sync_folder(out.parent)
    except OSError as error:
        raise BundleError(f"The packed weights cannot be written: {error.strerror or error}.") from error
    return True


def _write(graph: Path, saved: Path, out: Path, weights: str) -> bool:
    """Write `out`, and next to it the file `weights`. False: there is nothing to pack."""
    import onnx

    model, packed = onnx.load(graph, load_external_data=False), onnx.load(saved, load_external_data=False)
    named = [tensor for tensor in model.graph.initializer if "length" in _entries(tensor)]
    if not named:
        return False
    carrier = min(named, key=lambda tensor: int(_entries(tensor)["length"]))
    own = _entries(carrier)
    with out.with_name(weights).open("wb") as file:
        with (graph.parent / own["location"]).open("rb") as source:
            _copy(source, int(own.get("offset", 0)), int(own["length"]), file)
        with (saved.parent / _DATA).open("rb") as source:
            moved = _moved(packed, source, file)
    if not moved:
        return False
    del carrier.external_data[:]
    for key, value in {"location": weights, "offset": "0", "length": own["length"], **moved}.items():
        carrier.external_data.add(key=key, value=value)
    content = model.SerializeToString()
    out.write_bytes(content)
    with out.with_name(weights).open("r+b") as file:
        first = file.read(int(own["length"]))
        file.seek(0, os.SEEK_END)
        file.write(checksum(content, first))
    return True


def _moved(packed: Any, source: BinaryIO, target: BinaryIO) -> dict[str, str]:
    """Copy all packed weights. Returns the entries that name them. An entry is `KEY|OFFSET;BYTES;CHECKSUM|...`."""
    moved: dict[str, str] = {}
    for tensor in packed.graph.initializer:
        for name, value in _entries(tensor).items():
            if not name.startswith("prepacked"):
                continue
            key, *blobs = value.split("|")
            if key in moved:
                continue
            positions = []
            for blob in blobs:
                offset, length, checksum = blob.split(";")
                positions.append(f"{_copy(source, int(offset), int(length), target)};{length};{checksum}")
            moved[key] = "|".join([key, *positions])
    return {f"prepacked_{number}": entry for number, entry in enumerate(moved.values())}


def _copy(source: BinaryIO, offset: int, length: int, target: BinaryIO) -> int:
    """Append bytes of a file to another one. Returns where they begin."""
    end = target.seek(0, os.SEEK_END)
    begin = end + -end % _ALIGNMENT
    target.seek(begin)
    source.seek(offset)
    while length:
        piece = source.read(min(length, _PIECE))
        if not piece:
            raise BundleError("The file of constants is truncated.")
        target.write(piece)
        length -= len(piece)
    return begin


def _entries(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


if __name__ == "__main__":
    sys.exit(serve_request(PackRequest, pack))
