"""Weights in the order in which the kernels of this processor read them, in a file that is mapped into memory.

ONNX Runtime packs the weights of a session when it opens, into anonymous memory: a second copy of the model, which the
system cannot drop. It can also save the packed weights and map them: then they are pages of a file, which all workers
of a bundle share. A model of a billion weights opens in 1.0 instead of 1.4 s (3.3 s with large pages), with 90 instead
of 1150 MB of anonymous memory (docs/log.md).

    .packed-HEX.bin    the packed weights
    .packed-HEX.onnx   the bundle's graph. Its constants stay in the bundle's files; one of them names packed weights
    .packed-HEX.none   these weights cannot be packed. Empty: a load tries it, or was ended or failed while it tried

HEX is made of the processor, the version of the library and the files of the graph, so a file of other conditions is
never used, and is removed when a new one is made. The library packs each weight again, which is fast, and compares the
bytes. The rest of both files has a checksum. So a damaged file is detected: it is removed, the model opens without it,
and the next load makes it again. Also with a full disk, and in a folder that cannot be written, the model opens without
it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import msgspec
import onnxruntime as ort
from msgspec import Struct

from gateway.activity import NO_MEMORY
from gateway.bundles.bundle import PACKED_FILES
from gateway.errors import BundleError, GatewayError
from gateway.worker.decoders.onnx import SessionOptions, open_session
from gateway.worker.decoders.row_record import conditions

#: Bytes of constants. A smaller model saves little memory and time.
LEAST_BYTES = 256_000_000
#: In sizes of the constants: they are saved twice, with the packed weights, and the packed weights once more.
_NEEDED, _MARGIN = 4, 2_000_000_000
_RETRY_S = 3600.0  # after a try that was ended or failed; longer than a try takes
_LENGTH_BYTES, _SUM_BYTES, _LONGEST = 8, 32, 256 * 1024 * 1024


class PackRequest(Struct, frozen=True):
    """For the child process pack.py. `graph`: of the bundle. `out`: the .onnx file to make."""

    graph: str
    out: str


def packed_path(graph: Path) -> Path:
    """Where the packed graph is, if it has been made."""
    found = sha256("\n".join(conditions(graph)).encode()).hexdigest()
    return graph.with_name(f"{PACKED_FILES}{found[:16]}.onnx")


def open_packed(graph: Path, options: SessionOptions) -> ort.InferenceSession:
    """Open the packed graph in place of `graph` if there is one. Raises as `open_session`."""
    packed = packed_path(graph)
    if packed.is_file():
        try:
            if is_intact(packed):
                return open_session(packed, options)
        except GatewayError as error:
            if error.message.endswith(NO_MEMORY):  # the file is not the reason, and without it more is needed
                raise
        _remove(packed)
    return open_session(graph, options)


def pack_once(graph: Path, progress: Callable[[str], None]) -> None:
    """Make the packed graph if it is missing and there is space for it. Best effort."""
    out = packed_path(graph)
    nothing = out.with_suffix(".none")
    if out.is_file() or _is_ruled_out(nothing) or not _has_space(graph):
        return
    from gateway.child import run_in_child

    with suppress(OSError):  # the folder cannot be written, another load begins now, or the system gives no process
        nothing.touch(exist_ok=False)  # before: a load that takes too long for its limit is not the same again
        progress("packing its weights for this processor, which is done once")
        for old in graph.parent.glob(f"{PACKED_FILES}*"):
            if old != nothing:
                _remove(old)
        request = PackRequest(str(graph), str(out))
        try:  # Ctrl-C ends the load, and the child after it
            reply = run_in_child("gateway.worker.decoders.pack", request, "the packed weights", is_apart=True)
        except BundleError:
            if not _has_space(graph):  # the disk was full, and the child has given back what it used
                nothing.unlink()
            return
        if msgspec.json.decode(reply, type=bool):
            nothing.unlink()
        else:
            nothing.write_bytes(b"The kernels pack none of the weights.")


def checksum(graph: bytes, first: bytes) -> bytes:
    """For the end of the .bin: of what the library does not compare.

    Args:
        graph: the .onnx.
        first: the bytes before the packed weights, which are a constant of the graph.
    """
    return len(first).to_bytes(_LENGTH_BYTES, "little") + sha256(first + graph).digest()


def is_intact(packed: Path) -> bool:
    """Compare the checksum. The library compares the packed weights."""
    try:
        with packed.with_suffix(".bin").open("rb") as file:
            file.seek(-_LENGTH_BYTES - _SUM_BYTES, os.SEEK_END)
            expected = file.read()
            length = int.from_bytes(expected[:_LENGTH_BYTES], "little")
            file.seek(0)
            return length <= _LONGEST and checksum(packed.read_bytes(), file.read(length)) == expected
    except OSError:
        return False


def _is_ruled_out(nothing: Path) -> bool:
    """The weights cannot be packed, or another load tries it, or has tried it a short time ago."""
    try:
        found = nothing.stat()
        if found.st_size > 0 or abs(time.time() - found.st_mtime) < _RETRY_S:
            return True
        nothing.unlink()
    except OSError:
        pass
    return False


def _has_space(graph: Path) -> bool:
    try:
        size = sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
        return size >= LEAST_BYTES and shutil.disk_usage(graph.parent).free >= _NEEDED * size + _MARGIN
    except OSError:
        return False


def _remove(path: Path) -> None:
    """Windows keeps a file that another worker has mapped."""
    with suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
