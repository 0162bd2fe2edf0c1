"""A GGUF model in several files: all parts are read, and each fault is one sentence with the next step."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from gateway.builder.sources.detect import open_source
from gateway.builder.sources.source import EMBEDDING, layer
from gateway.errors import BundleError
from tests.support.tiny_gguf import split_gguf, write_tiny_gguf

NAMES = (EMBEDDING, layer(0, "self_attn.q_proj.weight"), layer(1, "mlp.down_proj.weight"))


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    whole = write_tiny_gguf(tmp_path / "tiny.gguf", stored_as="Q8_0")
    made = split_gguf(whole, 3)
    whole.rename(tmp_path / "whole")
    return made


@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_opens_the_whole_model(parts: list[Path], given: int) -> None:
    source, whole = open_source(parts[given]), open_source(parts[0].with_name("whole"))
    assert source.config == whole.config
    assert source.tokenizer_json() == whole.tokenizer_json()
    for name in NAMES:
        np.testing.assert_array_equal(source.tensor(name), whole.tensor(name))


def test_missing_part_is_named(parts: list[Path]) -> None:
    parts[1].unlink()
    with pytest.raises(BundleError, match=r"Part 2 of 3 is missing: download tiny-00002-of-00003\.gguf"):
        open_source(parts[0])


def test_parts_in_the_wrong_order_are_refused(parts: list[Path]) -> None:
    parts[1].rename(parts[1].with_name("x"))
    parts[2].rename(parts[1])
    parts[1].with_name("x").rename(parts[2])
    with pytest.raises(
        BundleError, match=r"tiny-00002-of-00003\.gguf is not part 2 of 3 \(its metadata says part 3 of 3\)"
    ):
        open_source(parts[0])


def test_name_without_the_right_count_is_refused(parts: list[Path]) -> None:
    for name in ("tiny.gguf", "tiny-00001-of-00004.gguf"):
        renamed = Path(shutil.copy(parts[0], parts[0].with_name(name)))
        with pytest.raises(BundleError, match=r"is a part of a model in 3 files, and its name does not say which"):
            open_source(renamed)


def test_part_of_another_model_is_refused(parts: list[Path], tmp_path: Path) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf", tied=False)
    shutil.copy(split_gguf(other, 2)[1], parts[1])
    with pytest.raises(BundleError, match=r"is not part 2 of 3 \(its metadata says part 2 of 2\)"):
        open_source(parts[0])
    shutil.copy(split_gguf(other, 3)[1], parts[1])
    with pytest.raises(BundleError, match=r"The 3 parts of tiny-00001-of-00003\.gguf do not belong together"):
        open_source(parts[0])


def test_truncated_part_is_named(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[2].read_bytes()[:100])
    with pytest.raises(BundleError, match=r"tiny-00003-of-00003\.gguf is incomplete"):
        open_source(parts[0])
