"""`check_hashes` names each kind of damage, and a quick check reads only what it must."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles import hashes
from gateway.bundles.hashes import (
    CHECKED_FILE,
    HASHES_FILE,
    Damage,
    check_hashes,
    repair_advice,
    write_hashes,
)
from gateway.bundles.replace import new_folder
from gateway.errors import BundleError

BLOCK = hashes._BLOCK_BYTES


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    (folder / "batch-512").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(range(256)) * (3 * BLOCK // 256) + b"end")
    (folder / "batch-512" / "genai_config.json").write_text("{}", encoding="utf-8")
    (folder / "empty.json").write_bytes(b"")
    write_hashes(folder)
    return folder


def flip(path: Path, position: int, bit: int = 3) -> None:
    """Flip one bit. The time of modification stays, as when a disk fails."""
    content, state = bytearray(path.read_bytes()), path.stat()
    content[position] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_intact_bundle_has_no_damage(bundle: Path) -> None:
    assert check_hashes(bundle) == []


def test_folder_without_hashes_is_unknown(bundle: Path) -> None:
    (bundle / HASHES_FILE).unlink()
    assert check_hashes(bundle) is None


@pytest.mark.parametrize("block", [0, 1, 3])
def test_flipped_bit_names_file_and_block(bundle: Path, block: int) -> None:
    flip(bundle / "weights.bin", block * BLOCK)
    last = min((block + 1) * BLOCK, 3 * BLOCK + 3) - 1
    expected = f"differs from its hash in bytes {block * BLOCK} to {last}"
    assert check_hashes(bundle) == [Damage("weights.bin", expected)]


def test_flipped_bits_of_hashes_file_accuse_no_other_file(bundle: Path) -> None:
    intact = (bundle / HASHES_FILE).read_bytes()
    for position in range(len(intact)):
        flip(bundle / HASHES_FILE, position, bit=position % 8)
        assert check_hashes(bundle) == [Damage(HASHES_FILE, "is damaged itself")], position
        (bundle / HASHES_FILE).write_bytes(intact)
    assert check_hashes(bundle) == []


def _swap(bundle: Path) -> None:
    first, second = bundle / "empty.json", bundle / "batch-512" / "genai_config.json"
    content = first.read_bytes(), second.read_bytes()
    second.write_bytes(content[0])
    first.write_bytes(content[1])


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda b: (b / "weights.bin").unlink(), ["weights.bin is missing"]),
        (lambda b: os.truncate(b / "weights.bin", 9), [f"weights.bin has 9 bytes instead of {3 * BLOCK + 3}"]),
        (lambda b: os.truncate(b / "weights.bin", 0), [f"weights.bin has 0 bytes instead of {3 * BLOCK + 3}"]),
        (_swap, ["batch-512/genai_config.json has 0 bytes instead of 2", "empty.json has 2 bytes instead of 0"]),
        (lambda b: shutil.rmtree(b / "batch-512"), ["batch-512/genai_config.json is missing"]),
        (lambda b: (b / HASHES_FILE).write_bytes(b""), ["hashes.json is damaged itself"]),
        (lambda b: (b / "new.txt").write_bytes(b""), []),
    ],
    ids=["missing", "truncated", "zero-length", "swapped", "folder-missing", "hashes-empty", "file-added"],
)
def test_damage_is_named(bundle: Path, damage: Callable[[Path], object], found: list[str]) -> None:
    damage(bundle)
    assert list(map(str, check_hashes(bundle) or [])) == found


@pytest.mark.skipif(os.name == "nt", reason="links need a permission on Windows")
def test_links_are_followed_to_files_only(bundle: Path, tmp_path: Path) -> None:
    (bundle / "weights.bin").rename(tmp_path / "blob")
    (bundle / "weights.bin").symlink_to(tmp_path / "blob")
    for name, target in (("loop", bundle), ("self", bundle / "self"), ("device", Path("/dev/zero"))):
        (bundle / name).symlink_to(target)
    os.mkfifo(bundle / "pipe")
    assert check_hashes(bundle) == []
    write_hashes(bundle)
    assert check_hashes(bundle) == []
    (bundle / "empty.json").unlink()
    (bundle / "empty.json").symlink_to(bundle / "empty.json")
    assert check_hashes(bundle) == [Damage("empty.json", "is missing")]


def test_hostile_hashes_cannot_name_files_outside(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    files = {"../outside": hashes._hash_file(tmp_path / "outside")}
    (bundle / HASHES_FILE).write_bytes(hashes._encoded(files))
    assert check_hashes(bundle) == [Damage(HASHES_FILE, "is damaged itself")]


def test_expected_sha256_is_compared(bundle: Path) -> None:
    empty = hashlib.sha256().hexdigest()
    write_hashes(bundle, {"empty.json": empty.upper()})
    for name in ("weights.bin", "absent"):
        with pytest.raises(BundleError, match=f"bundle: {name} has another sha256 than expected"):
            write_hashes(bundle, {name: empty})


def test_subfolder_with_own_hashes_is_checked_by_them(bundle: Path) -> None:
    compiled = bundle / "compiled" / "1.0-graph"
    compiled.mkdir(parents=True)
    (compiled / "graph.bin").write_bytes(b"context")
    write_hashes(compiled)
    write_hashes(bundle)
    assert check_hashes(bundle) == []
    flip(compiled / "graph.bin", 0)
    found = check_hashes(bundle)
    assert found == [Damage("compiled/1.0-graph/graph.bin", "differs from its hash in bytes 0 to 6")]
    advice = repair_advice("m", found, folder=bundle, has_source=True)
    assert advice == "Remove the folder bundle/compiled/1.0-graph: the next start compiles it again."
    (bundle / HASHES_FILE).unlink()
    assert check_hashes(bundle) == found
    flip(compiled / "graph.bin", 0)
    assert check_hashes(bundle) is None  # its own files are not known


@pytest.mark.parametrize("within", ["", "batch-512"])
@pytest.mark.parametrize("recorded", ["now", "earlier"])
def test_graphs_that_are_compiled_again_are_not_damaged(bundle: Path, within: str, recorded: str) -> None:
    """They had no hashes when the bundle's were written."""
    compiled = bundle / within / "compiled" / "1.0-graph"
    compiled.mkdir(parents=True)
    (compiled / "graph.bin").write_bytes(b"context")
    if recorded == "now":
        write_hashes(bundle)
    else:  # as an earlier version did
        names = ["empty.json", (compiled / "graph.bin").relative_to(bundle).as_posix()]
        hashes._write(bundle / HASHES_FILE, hashes._encoded({name: hashes._hash_file(bundle / name) for name in names}))
    assert check_hashes(bundle) == []
    with new_folder(compiled) as building:
        (building / "graph.bin").write_bytes(b"another context")
        write_hashes(building)
    assert check_hashes(bundle) == []
    shutil.rmtree(compiled)
    assert check_hashes(bundle) == []


def test_compiled_graphs_without_hashes_get_them(bundle: Path) -> None:
    compiled = bundle / "compiled" / "1.0-graph"
    compiled.mkdir(parents=True)
    (compiled / "graph.bin").write_bytes(b"context")
    write_hashes(bundle)
    flip(compiled / "graph.bin", 0)
    assert list(map(str, check_hashes(bundle) or [])) == [
        "compiled/1.0-graph/graph.bin differs from its hash in bytes 0 to 6"
    ]


@pytest.mark.parametrize("content", [b"other", b""], ids=["other-files", "same-files"])
def test_bundle_that_is_replaced_during_the_check_is_not_damaged(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """The first file is compared between the two renames. Of the others, the new ones are."""
    new, compare = tmp_path / "new", hashes._fault
    shutil.copytree(bundle, new)
    if content:
        (new / "weights.bin").write_bytes(content)
    write_hashes(new)

    def replace(path: Path, *expected: Any) -> str:
        monkeypatch.setattr(hashes, "_fault", compare)
        bundle.rename(tmp_path / "old")
        fault = compare(path, *expected)
        new.rename(bundle)
        return fault

    monkeypatch.setattr(hashes, "_fault", replace)
    assert check_hashes(bundle) == [] and not new.exists()
    flip(bundle / "weights.bin", 0)
    assert len(check_hashes(bundle) or []) == 1


class TestQuickCheck:
    """`weights.bin` is damaged without a change of its time, after a complete check."""

    @pytest.fixture
    def damaged(self, bundle: Path) -> Path:
        assert check_hashes(bundle, quick=True) == []
        flip(bundle / "weights.bin", 0)
        return bundle

    def test_first_quick_check_reads_all(self, bundle: Path) -> None:
        flip(bundle / "weights.bin", 0)
        assert len(check_hashes(bundle, quick=True) or []) == 1

    def test_unchanged_files_are_not_read_again(self, damaged: Path) -> None:
        assert check_hashes(damaged, quick=True) == []

    def test_complete_check_reads_all_and_forgets_the_last(self, damaged: Path) -> None:
        assert len(check_hashes(damaged) or []) == 1
        assert len(check_hashes(damaged, quick=True) or []) == 1

    @pytest.mark.parametrize("name", ["weights.bin", "empty.json"])
    def test_change_of_any_time_reads_all(self, damaged: Path, name: str) -> None:
        os.utime(damaged / name, (1, 1))
        assert len(check_hashes(damaged, quick=True) or []) == 1

    @pytest.mark.parametrize("days", [7.1, -1])
    def test_old_check_is_not_trusted(self, damaged: Path, monkeypatch: pytest.MonkeyPatch, days: float) -> None:
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + days * 86400)
        assert len(check_hashes(damaged, quick=True) or []) == 1

    def test_new_hashes_are_compared(self, damaged: Path) -> None:
        write_hashes(damaged)
        assert not (damaged / CHECKED_FILE).exists()
        assert check_hashes(damaged, quick=True) == []

    def test_torn_record_is_ignored(self, damaged: Path) -> None:
        (damaged / CHECKED_FILE).write_bytes((damaged / CHECKED_FILE).read_bytes()[:20])
        assert len(check_hashes(damaged, quick=True) or []) == 1
