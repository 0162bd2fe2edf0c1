"""What a context binary states: graphs, tensors, scales, chip. Damaged files."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gateway.errors import BundleError
from gateway.qnn.binary_info import Tensor, read_binary
from tests.support.npu.htp_compile import context_binaries
from tests.support.npu.tiny_htp_decoder import CACHE, LOGITS, MASK, TinyDecoder


def test_binary_states_its_graph_and_chip(context_folder: Path) -> None:
    decoder = TinyDecoder()
    info = read_binary(context_binaries(context_folder)[0])
    assert info.build.startswith("v2.") and (info.soc, info.architecture) == (60, 73)
    ((name, graph),) = info.graphs.items()
    assert graph.name == name
    ids, mask, cosines, sines, keys, values = graph.inputs
    assert ids == Tensor("input_ids", (1, 8), "int32")
    assert mask.shape == (1, 1, 8, decoder.context) and mask.dtype == "uint16"
    assert (mask.scale, mask.zero_point) == (pytest.approx(MASK.scale), int(MASK.zero))
    assert cosines.shape == sines.shape == (1, 1, 8, decoder.head_dim // 2)
    assert keys == Tensor("past_key_0_in", (2, 1, 128, 120), "uint8", float(CACHE.scale), 128)
    assert values.shape == (2, 1, 120, 128)
    assert [tensor.name for tensor in graph.outputs] == ["logits", "past_key_0_out", "past_value_0_out"]
    assert graph.outputs[0].scale == pytest.approx(LOGITS.scale)


def test_truncated_binary_is_refused(context_folder: Path, tmp_path: Path) -> None:
    content = context_binaries(context_folder)[0].read_bytes()
    file = tmp_path / "part.bin"
    for size in (1, 8, 100, 4096, 20_000, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(BundleError, match="damaged or no context binary"):
            read_binary(file)


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", random.Random(1).randbytes(100_000)],
    ids=["lfs-pointer", "noise"],
)
def test_other_file_is_refused(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "part.bin"
    file.write_bytes(content)
    with pytest.raises(BundleError, match="damaged or no context binary"):
        read_binary(file)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.bin").touch()
    for name in ("empty.bin", "missing.bin"):
        with pytest.raises(BundleError, match=f"{name} cannot be read"):
            read_binary(tmp_path / name)
