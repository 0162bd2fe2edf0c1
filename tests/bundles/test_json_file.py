"""`read_json` reports every fault in one line that names the folder and the file."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.bundles.bundle import load_bundle
from gateway.bundles.hashes import HASHES_FILE, check_hashes, is_known_intact
from gateway.bundles.json_file import read_json, read_optional_object
from gateway.errors import BundleError


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"x": 1}')
    assert read_json(tmp_path / "a.json", dict[str, int]) == {"x": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "model has no a.json, so it is not a model."),
        (b"{", "model: a.json cannot be read: Input data was truncated."),
        (b"[]", "model: a.json cannot be read: Expected `object`, got `array`."),
        (b'{"x": "\xff"}', "model: a.json cannot be read: "),
    ],
    ids=["missing", "truncated", "other-type", "not-utf-8"],
)
def test_fault_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "model" / "a.json"
    path.parent.mkdir()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        read_json(path, dict[str, Any], missing="so it is not a model")
    assert caught.value.message.startswith(message) and "\n" not in caught.value.message


def test_config_of_a_tokenizer_with_many_added_tokens_is_read(tmp_path: Path) -> None:
    tokens = {str(index): {"content": f"<unused{index}>", "special": True} for index in range(30_000)}
    (tmp_path / "a.json").write_text(json.dumps({"added_tokens_decoder": tokens}), encoding="utf-8")
    assert (tmp_path / "a.json").stat().st_size > 1 << 20
    assert len(read_optional_object(tmp_path / "a.json")["added_tokens_decoder"]) == 30_000


def test_missing_optional_file_is_an_empty_object(tmp_path: Path) -> None:
    assert read_optional_object(tmp_path / "a.json") == {}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no named pipe in a folder")
@pytest.mark.parametrize("name", ["genai_config.json", "tokenizer_config.json", "chat_template.jinja", HASHES_FILE])
@pytest.mark.parametrize("target", ["pipe", "/dev/zero", "file of 1 TB"])
def test_file_without_an_end_is_refused(tiny: Path, tmp_path: Path, name: str, target: str) -> None:
    """Read in the gateway process: a pipe has no end, and a file can be larger than the memory."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny, folder)
    file = folder / name
    file.unlink(missing_ok=True)
    if target == "pipe":
        os.mkfifo(file)
    elif target == "/dev/zero":
        file.symlink_to(target)
    else:
        file.touch()
        os.truncate(file, 10**12)
    if name == HASHES_FILE:
        assert not is_known_intact(folder)
        assert [damage.file for damage in check_hashes(folder) or []] == [HASHES_FILE]
    elif name in ("tokenizer_config.json", "chat_template.jinja") and target != "file of 1 TB":
        assert load_bundle(folder).chat_template != ""  # optional: a thing that is no file is ignored
    else:
        with pytest.raises(BundleError, match="cannot be read"):
            load_bundle(folder)
