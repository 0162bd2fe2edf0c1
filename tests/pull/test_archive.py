"""`unpack`: harmless zips arrive whole, every other one is refused and leaves no file outside."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest

from gateway.errors import BundleError
from gateway.pull import archive
from gateway.pull.archive import check_directory, unpack
from gateway.pull.names import check_model_name, model_name
from tests.support.small_disk import small_disk


def quiet(stage: str, done: int, total: int) -> None:
    """A `Report` that shows nothing."""


def write_zip(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in entries:
            opened.writestr(name, content)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "out"
    folder.mkdir(parents=True)
    return folder


def refusal(path: Path, out: Path) -> str:
    with pytest.raises(BundleError) as caught:
        unpack(path, out, quiet)
    outside = {name for name in files(out.parents[1]) if not name.startswith("models/out/")}
    assert outside <= {path.name}, "a file was written outside"
    return caught.value.message


def test_files_arrive_with_their_folders_and_progress(tmp_path: Path, out: Path) -> None:
    entries = [("m/a.bin", bytes(3_000_000)), ("m/sub/b.json", b"{}"), ("m/empty/", b""), ("m/zero", b"")]
    seen: list[tuple[str, int, int]] = []
    unpack(write_zip(tmp_path / "m.zip", *entries), out, lambda *row: seen.append(row))
    assert files(out) == {"m/a.bin": bytes(3_000_000), "m/sub/b.json": b"{}", "m/zero": b""}
    assert seen[-1] == ("unpacking m.zip", 3_000_002, 3_000_002)
    assert len(seen) >= 4  # in pieces


def test_separators_of_windows_and_files_of_macos(tmp_path: Path, out: Path) -> None:
    entries = [("m\\a.bin", b"a"), ("__MACOSX/m/._a.bin", b"x"), ("m/.DS_Store", b"x")]
    unpack(write_zip(tmp_path / "m.zip", *entries), out, quiet)
    assert files(out) == {"m/a.bin": b"a"}


def test_large_zip_form_is_read(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    path = write_zip(tmp_path / "m.zip", ("a", bytes(200)), ("b", bytes(range(200))))
    assert b"PK\x06\x07" in path.read_bytes()
    monkeypatch.undo()
    unpack(path, out, quiet)
    assert files(out) == {"a": bytes(200), "b": bytes(range(200))}


@pytest.mark.parametrize(
    "name",
    (
        *("../a", "m/../../a", "..\\a", "/a", "\\a", "\\\\host\\share\\a", "C:/a", "C:a", "m/a:stream", "m/.."),
        *("m//a", "./a", "m/con", "m/COM1.txt", "nul", "aux .json", "m/a.", "m/a ", "m/ a", "m/a?", "m/a*", "m/a\x01"),
        *("m/\u202ea", "a/" * 20 + "a", "m/" + "a" * 300),
    ),
)
def test_dangerous_name_is_refused(tmp_path: Path, out: Path, name: str) -> None:
    path = write_zip(tmp_path / "m.zip", ("ok", b"1"), (name, b"2"))
    assert "Nothing was installed" in refusal(path, out)
    assert files(out) == {}  # all names are read before the first file is written


def test_name_with_nul_is_refused(tmp_path: Path, out: Path) -> None:
    path = write_zip(tmp_path / "m.zip", ("aXb", b"1"))
    path.write_bytes(path.read_bytes().replace(b"aXb", b"a\0b"))
    assert "Windows does not allow" in refusal(path, out)


@pytest.mark.parametrize(
    "pair", [("A", "a"), ("m/x", "M/X"), ("\u00e9", "e\u0301"), ("a", "a/b"), ("a/b", "A"), ("straße", "STRASSE")]
)
def test_colliding_names_are_refused(tmp_path: Path, out: Path, pair: tuple[str, str]) -> None:
    path = write_zip(tmp_path / "m.zip", (pair[0], b"1"), (pair[1], b"2"))
    assert "twice where case is ignored" in refusal(path, out)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_name_is_refused(tmp_path: Path, out: Path) -> None:
    assert "twice" in refusal(write_zip(tmp_path / "m.zip", ("a", b"1"), ("a", b"2")), out)


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o010644, 0o140755])
def test_link_and_device_are_refused(tmp_path: Path, out: Path, mode: int) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = mode << 16
    assert "link or a device" in refusal(write_zip(tmp_path / "m.zip", (link, b"/etc/passwd"), ("link2", b"")), out)


def test_bomb_is_refused_before_a_byte_is_written(tmp_path: Path, out: Path) -> None:
    path = write_zip(tmp_path / "m.zip", ("zeros", bytes(80 << 20)))
    assert path.stat().st_size < 1 << 20
    assert "would become 83886080, which no model does" in refusal(path, out)
    assert files(out) == {}


def test_entry_longer_than_stated_is_refused(tmp_path: Path, out: Path) -> None:
    """The list of entries states 10 bytes, and the data has 200,000."""
    path = write_zip(tmp_path / "m.zip", ("a", bytes(200_000)))
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<L", 200_000), struct.pack("<L", 10)))
    assert "damaged" in refusal(path, out)
    assert len(files(out).get("a", b"")) <= 10


def test_entries_that_share_bytes_are_bounded(tmp_path: Path, out: Path) -> None:
    """Two hundred entries in the list, all with the data of one."""
    path = write_zip(tmp_path / "m.zip", ("a", bytes(1 << 20)))
    with zipfile.ZipFile(path, "a") as opened:
        first = opened.infolist()[0]
        for _ in range(200):
            opened.filelist.append(first)
        opened._didModify = True
    assert "Nothing was installed" in refusal(path, out)


def test_too_many_entries_are_refused_before_they_are_read(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "m.zip", *((str(number), b"") for number in range(5001)))
    monkeypatch.setattr(archive.zipfile, "ZipFile", None)
    assert "has 5001 entries, and a model has fewer than 5000" in refusal(path, out)


def test_encrypted_and_unknown_compression_are_refused(tmp_path: Path, out: Path) -> None:
    path = write_zip(tmp_path / "m.zip", ("a", b"1"))
    at = path.read_bytes().index(b"PK\x01\x02")
    content = bytearray(path.read_bytes())
    content[at + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted" in refusal(path, out)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr("a", b"1")
    assert "method 14" in refusal(path, out)


@pytest.mark.parametrize("size", range(0, 440, 23))
def test_cut_zip_is_refused(tmp_path: Path, out: Path, size: int) -> None:
    path = write_zip(tmp_path / "m.zip", ("a", b"1" * 40), ("b/c", bytes(range(256))))
    assert path.stat().st_size > 440
    path.write_bytes(path.read_bytes()[:size])
    assert "damaged" in refusal(path, out)


def test_length_of_the_list_is_read_where_the_unpacker_reads_it(tmp_path: Path) -> None:
    """A large zip has a pointer to the record with the length, and `zipfile` takes what lies before the pointer."""

    def record(count: int) -> bytes:
        return struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, 46 * count, 0)

    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)  # points to the first record
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = tmp_path / "m.zip"
    path.write_bytes(record(1) + record(6000) + locator + end)
    with pytest.raises(BundleError, match="it has 6000 entries"), path.open("rb") as file:
        check_directory(file, "m.zip")


def test_flipped_bit_is_found(tmp_path: Path, out: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as opened:
        opened.writestr("weights", bytes(range(256)) * 400)
    content = bytearray(buffer.getvalue())
    content[50_000] ^= 1
    (tmp_path / "m.zip").write_bytes(content)
    assert "Bad CRC-32" in refusal(tmp_path / "m.zip", out)


def test_no_space_is_found_before_the_first_file(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "m.zip", ("a", bytes(3 << 20)))
    with small_disk(tmp_path / "small", 2 << 20) as disk:
        with pytest.raises(BundleError, match=r"Unpacking m\.zip needs about \d+ MB in .*small, and 2 MB are free"):
            unpack(path, disk.folder, quiet)
        assert files(disk.folder) == {}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("qwen3_4b-geniex_qairt-w4a16-qualcomm_snapdragon_x_elite.zip", "qwen3_4b"),
        ("Llama-3.2-3B-Instruct-GGUF", "llama-3.2-3b-instruct"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct.q4_1"),
        ("Ünïcode  name.zip", "n-code-name"),
        ("...", "model"),
    ],
)
def test_model_name_of_a_file(text: str, name: str) -> None:
    assert model_name(text) == name
    assert check_model_name(name) == name
