"""The hashes of a bundle's files, in hashes.json: written when a bundle is made, compared to find damage.

A file has one sha256 and a CRC-32 for each block, which locates the damage. Subfolders with their own hashes.json are
checked by it. Graphs that were compiled on this machine (compiled/NAME/) always are: they can be compiled again. Hashes
find accidents, not attacks: who can write the files can write their hashes.

A check can be quick: it reads nothing if size and time of every file are those of the last complete check, and that
check is less than a week old. `.checked.json` remembers the check.
"""

from __future__ import annotations

import hashlib
import io
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from gateway.bundles.genai_config import check_inside
from gateway.bundles.json_file import read_record
from gateway.errors import BundleError

HASHES_FILE, CHECKED_FILE = "hashes.json", ".checked.json"
COMPILED_FOLDER = "compiled"
_BLOCK_BYTES = 4 * 1024 * 1024
_QUICK_S = 7 * 24 * 3600.0  # a quick check relies on a complete check that is not older


class FileHash(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    size: int
    sha256: str
    blocks: tuple[int, ...]  # CRC-32 of each block


class Damage(Struct, frozen=True):
    """One damaged file: its path in the bundle, and what is wrong, as the end of a sentence."""

    file: str
    fault: str

    def __str__(self) -> str:
        return f"{self.file} {self.fault}"


class _Hashes(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of hashes.json. `digest` is the sha256 of the rest: damage of hashes.json accuses no other file."""

    block_bytes: Annotated[int, Meta(ge=4096, le=1 << 28)]
    files: dict[str, FileHash]
    digest: str

    def computed_digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode([self.block_bytes, self.files])).hexdigest()


class _Checked(Struct, frozen=True, kw_only=True):
    """The last complete check without damage. `files`: name -> (bytes, time of modification in ns)."""

    digest: str
    checked_at: float  # seconds since 1970
    files: dict[str, tuple[int, int]]


def write_hashes(folder: Path, expected: Mapping[str, str] | None = None) -> None:
    """Write the hashes of every file in `folder`, for a bundle that is complete.

    Folders of compiled graphs get their own if they have none.

    Args:
        expected: file -> the sha256 that it must have, for example from the manifest of a download.
    Raises BundleError if a file has another sha256 than expected, OSError if a file cannot be read or written.
    """
    files = {name: _hash_file(folder / name) for name in _names(folder)}
    for name, sha256 in (expected or {}).items():
        if name not in files or files[name].sha256 != sha256.lower():
            raise BundleError(f"{folder.name}: {name} has another sha256 than expected. Fetch it again.")
    for path in _compiled_without_hashes(folder):
        write_hashes(path)
    _write(folder / HASHES_FILE, _encoded(files))
    with suppress(OSError):
        (folder / CHECKED_FILE).unlink()


def check_hashes(folder: Path, *, quick: bool = False) -> list[Damage] | None:
    """Compare the files in `folder` with their hashes. None: no damage is known, and the bundle has no hashes.

    A bundle that is replaced meanwhile is compared again.

    Args:
        quick: read the files only if one of them changed, or if the last complete check is older than a week.
    """
    while True:
        before = hashes_states(folder)
        damages = [
            Damage((path.parent.relative_to(folder) / damage.file).as_posix(), damage.fault)
            for path in before
            for damage in _check_folder(path.parent, quick)
        ]
        if not damages or hashes_states(folder) == before:
            return damages or ([] if folder / HASHES_FILE in before else None)


def hashes_states(folder: Path) -> dict[Path, tuple[int, int] | None]:
    """The state of each hashes.json in `folder`. Another one: the bundle, or a graph in it, was replaced."""
    return {path: _state(path) for path in _hash_files(folder)}


def repair_advice(name: str, damages: Sequence[Damage], *, folder: Path, has_source: bool) -> str:
    """What a person can do about damaged files of model `name`: two sentences."""
    compiled = [damage.file for damage in damages if _is_compiled(PurePath(damage.file))]
    if len(compiled) == len(damages):
        return f"Remove the folder {folder.name}/{compiled[0].rpartition('/')[0]}: the next start compiles it again."
    repair = (
        f"Remove the folder {folder.name} and start the gateway, which builds it again."
        if has_source
        else f"Fetch {folder.name} again."
    )
    return f"{repair} If you changed the file yourself, `npu-gateway check --record {name}` accepts it."


def is_known_intact(folder: Path) -> bool:
    """True if a quick check would read nothing and find nothing. Also if there are no hashes."""
    return all(_is_remembered_now(path.parent) for path in _hash_files(folder))


def file_states(folder: Path, names: list[str]) -> list[tuple[int, int] | None]:
    """(bytes, time of modification in ns) of each file; None: it is not there."""
    return [_state(folder / name) for name in names]


def _check_folder(folder: Path, quick: bool) -> list[Damage]:
    hashes = _read_hashes(folder)
    if hashes is None:
        return [Damage(HASHES_FILE, "is damaged itself")]
    states = _states(folder, hashes)
    if quick and _is_remembered(folder, hashes.digest, states):
        return []
    damages = [
        Damage(name, fault)
        for name, expected in hashes.files.items()
        if (fault := _fault(folder / name, expected, hashes.block_bytes))
    ]
    with suppress(OSError):  # a folder that cannot be written: nothing is remembered
        if damages:
            (folder / CHECKED_FILE).unlink(missing_ok=True)
        else:
            checked = _Checked(digest=hashes.digest, checked_at=time.time(), files=states)
            _write(folder / CHECKED_FILE, msgspec.json.encode(checked))
    return damages


def _encoded(files: dict[str, FileHash]) -> bytes:
    """The content of hashes.json."""
    hashes = _Hashes(block_bytes=_BLOCK_BYTES, files=files, digest="")
    hashes = replace(hashes, digest=hashes.computed_digest())
    return msgspec.json.format(msgspec.json.encode(hashes), indent=1)


def _read_hashes(folder: Path) -> _Hashes | None:
    """Without compiled graphs. None: hashes.json is damaged, or it names a file outside the folder."""
    hashes = read_record(folder / HASHES_FILE, _Hashes)
    if hashes is None:
        return None
    try:
        for name in hashes.files:
            check_inside(folder, name)
    except BundleError:
        return None
    if hashes.digest != hashes.computed_digest():
        return None
    return replace(
        hashes, files={name: each for name, each in hashes.files.items() if not _is_compiled(PurePath(name))}
    )


def _states(folder: Path, hashes: _Hashes) -> dict[str, tuple[int, int]]:
    return {name: _state(folder / name) or (0, 0) for name in hashes.files}


def _is_remembered_now(folder: Path) -> bool:
    hashes = _read_hashes(folder)
    return hashes is not None and _is_remembered(folder, hashes.digest, _states(folder, hashes))


def _is_remembered(folder: Path, digest: str, states: dict[str, tuple[int, int]]) -> bool:
    checked = read_record(folder / CHECKED_FILE, _Checked)
    if checked is None:
        return False
    is_recent = 0 <= time.time() - checked.checked_at < _QUICK_S
    return is_recent and checked.digest == digest and checked.files == states


def _fault(path: Path, expected: FileHash, block_bytes: int) -> str:
    """What is wrong with a file; "" if nothing is."""
    state = _state(path)
    if state is None:
        return "is missing"
    if state[0] != expected.size:
        return f"has {state[0]} bytes instead of {expected.size}"
    try:
        found = _hash_file(path, block_bytes)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if found.sha256 == expected.sha256:
        return ""
    wrong = [index for index, (a, b) in enumerate(zip(found.blocks, expected.blocks, strict=False)) if a != b]
    if not wrong:
        return "differs from its hash"
    first, last = wrong[0] * block_bytes, min((wrong[-1] + 1) * block_bytes, expected.size) - 1
    return f"differs from its hash in bytes {first} to {last}"


def _hash_file(path: Path, block_bytes: int = _BLOCK_BYTES) -> FileHash:
    sha256, blocks, size = hashlib.sha256(), [], 0
    with path.open("rb", buffering=0) as file:
        while block := _read_block(file, block_bytes):
            sha256.update(block)
            blocks.append(zlib.crc32(block))
            size += len(block)
    return FileHash(size=size, sha256=sha256.hexdigest(), blocks=tuple(blocks))


def _read_block(file: io.RawIOBase, size: int) -> bytes:
    """`size` bytes, fewer at the end of the file: one read can return less."""
    block = file.read(size) or b""
    while block and len(block) < size and (more := file.read(size - len(block))):
        block += more
    return block


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns) if path.is_file() else None


def _names(folder: Path) -> list[str]:
    """The files of a bundle, sorted.

    Not: hidden files and folders, compiled graphs, folders with their own hashes, linked folders.
    """
    found = (
        (path / name).relative_to(folder)
        for path, names in _walk(folder)
        for name in names
        if name != HASHES_FILE and (path / name).is_file() and (path == folder or _is_covered(folder, path))
    )
    return sorted(file.as_posix() for file in found if not _is_compiled(file))


def _is_compiled(file: PurePath) -> bool:
    """True for `compiled/NAME/FILE`, relative to the bundle, also in a subfolder."""
    return COMPILED_FOLDER in file.parent.parts[:-1]


def _compiled_without_hashes(folder: Path) -> list[Path]:
    return [
        path
        for path, names in _walk(folder)
        if path.relative_to(folder).parts[-2:-1] == (COMPILED_FOLDER,) and names and HASHES_FILE not in names
    ]


def _is_covered(folder: Path, path: Path) -> bool:
    """True if no folder from `path` up to `folder` has its own hashes."""
    between = [path, *path.parents]
    return not any((each / HASHES_FILE).exists() for each in between[: between.index(folder)])


def _hash_files(folder: Path) -> list[Path]:
    return [path / HASHES_FILE for path, names in _walk(folder) if HASHES_FILE in names]


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(path), [name for name in names if not name.startswith(".")]


def _write(path: Path, content: bytes) -> None:
    """Replace `path` by a complete file. If two programs do so at the same time, one can get an OSError."""
    unfinished = path.with_name(f".{path.name}.new")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
