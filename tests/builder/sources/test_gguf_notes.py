"""One sentence for each number format of a GGUF file that the bundle stores in another one, with the measured error."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest

from gateway.builder.sources.gguf_notes import format_notes
from tests.support.tiny_gguf import BLOCK_FORMATS, random_blocks


def tensor(name: str, offsets: list[int] | None = None) -> Any:
    rows = random_blocks(name, rows=16, blocks=2, offsets=offsets)
    return SimpleNamespace(tensor_type=gguf.GGMLQuantizationType[name], shape=(512, 16), data=rows)


def notes(**tensors: Any) -> tuple[str, ...]:
    return format_notes(tensors)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        *[(name, "") for name in ("Q4_0", "Q4_1", "Q4_K", "Q8_0")],
        *[(f"Q{bits}_K", f"Q{bits}_K ({bits} bits) becomes 4-bit blocks with the same values") for bits in (2, 3)],
        ("IQ4_NL", "IQ4_NL (4 bits) becomes 8-bit blocks with the same values"),
    ],
)
def test_format_with_fewer_bits_than_its_blocks_is_one_sentence(name: str, sentence: str) -> None:
    assert notes(weight=tensor(name)) == ((sentence,) if sentence else ())
    assert name in BLOCK_FORMATS


@pytest.mark.parametrize(("name", "bits"), [("Q5_1", 5), ("Q5_K", 5), ("Q6_K", 6)])
def test_format_that_the_kernel_multiplies_slowly_is_a_sentence_with_the_error(name: str, bits: int) -> None:
    (note,) = notes(weight=tensor(name))
    found = re.fullmatch(
        rf"{name} \({bits} bits\) becomes 8-bit blocks with an error of (\d\.\d\d)%, "
        r'or, with activations = "float", with the same values',
        note,
    )
    assert found and 0 < float(found[1]) < 1


def test_format_that_no_block_has_is_a_sentence_with_the_error() -> None:
    (note,) = notes(weight=tensor("IQ3_S", offsets=[0]))
    found = re.fullmatch(r"IQ3_S becomes 8-bit blocks with an error of (\d\.\d\d)%", note)
    assert found and 0 < float(found[1]) < 1


def test_floats_and_vectors_need_no_sentence() -> None:
    vector = SimpleNamespace(tensor_type=gguf.GGMLQuantizationType.Q5_K, shape=(512,), data=np.zeros(1))
    matrix = SimpleNamespace(tensor_type=gguf.GGMLQuantizationType.F16, shape=(2, 2), data=np.zeros((2, 2)))
    assert notes(a=vector, b=matrix) == ()
