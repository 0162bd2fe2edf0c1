"""Write the libraries of the page, `gateway/web/vendor/`, from the npm registry.

    python scripts/vendor_web.py [--update]

`vendor.json` there is the lock: each library's version, the registry's sha512 of its package, and of each file that we
take its name here and its sha256. Every run writes the same files. It stops before it writes if a hash is different.
To take another version, change `version` in the lock and run with `--update`, which records the new hashes; read what
changed before you commit. It needs npm. Standard library only.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).resolve().parent.parent / "gateway" / "web" / "vendor"
LOCK = VENDOR / "vendor.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--update", action="store_true", help="record the hashes of the versions in the lock")
    update = parser.parse_args().update
    if (npm := shutil.which("npm")) is None:
        sys.exit("npm is not on the PATH: install Node.js.")
    lock: dict[str, Any] = json.loads(LOCK.read_text(encoding="utf-8"))
    contents: dict[Path, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, library in lock.items():
            archive = download(npm, library, Path(folder))
            contents |= take(VENDOR / name, library, archive, update=update)
    write(contents)
    if update:
        LOCK.write_text(json.dumps(lock, indent=2) + "\n", encoding="utf-8", newline="\n")
    print(f"{len(contents)} files, {sum(map(len, contents.values())):,} bytes")
    return 0


def download(npm: str, library: dict[str, Any], folder: Path) -> Path:
    """The package, as npm packs it for its registry."""
    command = [npm, "pack", f"{library['package']}@{library['version']}", "--silent", "--pack-destination", str(folder)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return folder / printed.split()[-1]


def take(target: Path, library: dict[str, Any], archive: Path, *, update: bool) -> dict[Path, bytes]:
    """The bytes of the library's files by their path here. Exits if a hash differs, unless `update` records it."""
    digest = hashlib.sha512(archive.read_bytes()).digest()
    record(library, "integrity", f"sha512-{base64.b64encode(digest).decode()}", update=update)
    taken = {}
    with tarfile.open(archive) as package:
        for file in library["files"]:
            member = package.extractfile(f"package/{file['from']}")
            assert member is not None, file
            content = member.read()
            record(file, "sha256", hashlib.sha256(content).hexdigest(), update=update)
            taken[target / file["name"]] = content
    return taken


def record(entry: dict[str, Any], key: str, found: str, *, update: bool) -> None:
    if update:
        entry[key] = found
    elif entry.get(key) != found:
        sys.exit(f"{entry.get('package') or entry['from']}: the lock has {key} {entry.get(key)}, but it is {found}.")


def write(contents: dict[Path, bytes]) -> None:
    """Write the files, and remove every other file except the lock."""
    for path in [path for path in VENDOR.rglob("*") if path.is_file() and path != LOCK and path not in contents]:
        path.unlink()
    for path, content in contents.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
