"""The merges of a SentencePiece vocabulary."""

from __future__ import annotations

import pytest

from gateway.builder.sources.gguf_sentencepiece import sentencepiece


@pytest.mark.parametrize(("length", "count"), [(4, 1), (4000, 0)])
def test_token_of_a_book_is_no_result_of_pairs(length: int, count: int) -> None:
    """All pairs of a token take time with the square of its length: minutes for a token of a megabyte."""
    half = "a" * (length // 2)
    values = {"tokenizer.ggml.tokens": ["<unk>", half, half * 2], "tokenizer.ggml.token_type": [2, 1, 1]}
    tokenizer = sentencepiece(lambda key, default=None: values.get(key, default), values["tokenizer.ggml.tokens"])
    assert tokenizer.to_str().count(f'"{half}","{half}"') + tokenizer.to_str().count(f'"{half} {half}"') == count
