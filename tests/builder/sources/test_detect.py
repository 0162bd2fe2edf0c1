"""`open_source` selects the reader by the path."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.builder.sources.detect import open_source
from gateway.builder.sources.gguf import GgufSource
from gateway.builder.sources.huggingface import HuggingFaceSource
from gateway.errors import BundleError
from tests.support.tiny import write_tiny_folder
from tests.support.tiny_gguf import write_tiny_gguf


def test_gguf_file_and_hugging_face_folder_are_recognised(tmp_path: Path) -> None:
    assert isinstance(open_source(write_tiny_gguf(tmp_path / "TINY.GGUF")), GgufSource)
    assert isinstance(open_source(write_tiny_folder(tmp_path / "folder")), HuggingFaceSource)


def test_gguf_file_without_suffix_is_recognised_by_its_first_bytes(tmp_path: Path) -> None:
    assert isinstance(open_source(write_tiny_gguf(tmp_path / f"sha256-{'0' * 64}")), GgufSource)


def test_unknown_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"")
    for path, message in ((tmp_path / "model.pth", "neither"), (tmp_path / "nothing", "no model at nothing")):
        with pytest.raises(BundleError, match=message):
            open_source(path)
