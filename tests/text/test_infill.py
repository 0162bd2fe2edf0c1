"""Fill-in-the-middle prompts of each model family."""

from __future__ import annotations

import pytest

from gateway.text.infill import infill_ids
from gateway.text.tokens import TextTokenizer
from tests.support.tiny import SPECIAL_TOKENS, train_tokenizer
from tests.text.test_tokens import BYTE_LEVEL

FAMILIES = {
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "deepseek": ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),
}


@pytest.mark.parametrize("marks", FAMILIES.values(), ids=FAMILIES.keys())
def test_infill_prompt_is_prefix_suffix_middle(marks: tuple[str, ...]) -> None:
    tokens = TextTokenizer(train_tokenizer((*SPECIAL_TOKENS, *marks)))
    ids = infill_ids(tokens, "def f(", f"):{marks[2]}<|im_end|>")
    assert ids is not None
    assert tokens.decode(ids) == f"{marks[0]}def f({marks[1]}):{marks[2]}<|im_end|>{marks[2]}"
    assert [index for index in ids if index < 6] == [3, 4, 5]  # the special tokens in the client's text stay text


def test_infill_without_complete_token_set_is_none() -> None:
    assert infill_ids(BYTE_LEVEL, "a", "b") is None
    assert infill_ids(TextTokenizer(train_tokenizer((*SPECIAL_TOKENS, *FAMILIES["qwen"][:2]))), "a", "b") is None
