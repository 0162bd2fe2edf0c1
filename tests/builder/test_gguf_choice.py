"""The GGUF model of a repository that is chosen: by format, file and memory, and the sentence if there is none."""

from __future__ import annotations

import pytest

from gateway.builder.gguf_choice import choose_gguf, gguf_models
from gateway.errors import BundleError

GB = 1_000_000_000
#: A repository with the usual names
USUAL = {
    **{"M-Q2_K.gguf": 3 * GB, "M-Q3_K_M.gguf": 4 * GB, "M-Q4_0.gguf": 4 * GB + 1, "M-Q4_K_M.gguf": 5 * GB},
    **{"M-Q6_K.gguf": 7 * GB, "M-Q8_0.gguf": 8 * GB, "mmproj-M-Q4_K_M.gguf": GB, "M.imatrix.gguf": 1},
    **{"M-BF16/M-BF16-00001-of-00002.gguf": 8 * GB, "M-BF16/M-BF16-00002-of-00002.gguf": 7 * GB, "README.md": 1},
}


def chosen(sizes: dict[str, int], wanted: str = "", memory: int = 64 * GB) -> list[str]:
    return list(choose_gguf("org/m", gguf_models(sizes), wanted, memory).files)


def refusal(sizes: dict[str, int], wanted: str = "", memory: int = 64 * GB) -> str:
    with pytest.raises(BundleError) as caught:
        chosen(sizes, wanted, memory)
    return caught.value.message


@pytest.mark.parametrize(("memory", "file"), [(64, "M-Q4_K_M.gguf"), (10, "M-Q4_K_M.gguf"), (9, "M-Q4_0.gguf")])
def test_first_format_whose_bundle_fits_into_the_memory_is_chosen(memory: int, file: str) -> None:
    assert chosen(USUAL, memory=memory * GB) == [file]


def test_no_file_that_fits_is_one_sentence_with_all_sizes() -> None:
    message = refusal(USUAL, memory=4 * GB)
    assert message.startswith("org/m has no GGUF file that fits: the smallest bundle needs 4.8 GB, and 75% of the")
    assert "It has M-BF16/M-BF16-00001-of-00002.gguf (15.0 GB in 2 files), M-Q2_K.gguf (3.0 GB)," in message


@pytest.mark.parametrize(
    ("wanted", "file"),
    [
        ("q8_0", "M-Q8_0.gguf"),
        ("Q2_K", "M-Q2_K.gguf"),
        ("M-Q3_K_M.gguf", "M-Q3_K_M.gguf"),
        ("bf16", "M-BF16/M-BF16-00001-of-00002.gguf"),
        ("M-BF16/M-BF16-00002-of-00002.gguf", "M-BF16/M-BF16-00001-of-00002.gguf"),
    ],
)
def test_format_or_file_of_the_user_is_chosen_also_if_it_is_large(wanted: str, file: str) -> None:
    assert chosen(USUAL, wanted, memory=GB)[0] == file


@pytest.mark.parametrize("wanted", ["Q4_K", "K_M", "_0", "M", "nothing.gguf", "mmproj-M-Q4_K_M.gguf", "*"])
def test_format_that_is_not_there_is_refused(wanted: str) -> None:
    assert refusal(USUAL, wanted).startswith(f"org/m has no GGUF file for {wanted}. It has M-BF16")


@pytest.mark.parametrize(
    "names", [["Q4_K_M.gguf"], ["m.Q4_K_M.gguf"], ["m-UD-q4_k_m.GGUF"], ["Q4_K_M/m-00001-of-00002.gguf"], ["any.gguf"]]
)
def test_spellings_of_the_format_are_known(names: list[str]) -> None:
    sizes = dict.fromkeys(names, GB) | {name.replace("00001-of", "00002-of"): GB for name in names}
    assert chosen(sizes)[0] == names[0]
    if names != ["any.gguf"]:
        assert chosen(sizes | {"m-f16.gguf": GB}, "Q4_K_M")[0] == names[0]


def test_aliases_of_floats_are_known() -> None:
    assert chosen({"m-fp16.gguf": GB, "m-bf16.gguf": GB}) == ["m-fp16.gguf"]
    assert chosen({"m-fp32.gguf": GB}, "f32") == ["m-fp32.gguf"]


def test_two_models_of_one_format_are_refused_with_their_sizes() -> None:
    sizes = {"m-1b-Q4_K_M.gguf": GB, "m-3b-Q4_K_M.gguf": 3 * GB, "m-3b-Q8_0.gguf": 4 * GB}
    both = "It has m-1b-Q4_K_M.gguf (1.0 GB), m-3b-Q4_K_M.gguf (3.0 GB). Write hf:org/m/FILE.gguf."
    assert refusal(sizes, "q4_k_m") == f"org/m has 2 GGUF files for q4_k_m. {both}"
    assert refusal(sizes) == f"org/m has 2 GGUF files for the first choice. {both}"
    assert refusal({"a.gguf": 1, "b.gguf": 2}).startswith("org/m has no GGUF file in a format that is chosen by itself")


def test_model_with_a_missing_part_is_no_choice() -> None:
    assert gguf_models({"m-Q8_0-00001-of-00003.gguf": 1, "m-Q8_0-00003-of-00003.gguf": 1}) == []
