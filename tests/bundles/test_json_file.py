"""`read_json` reports every fault in one line that names the folder and the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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


def test_missing_optional_file_is_an_empty_object(tmp_path: Path) -> None:
    assert read_optional_object(tmp_path / "a.json") == {}
