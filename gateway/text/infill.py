"""Fill-in-the-middle: the text before a gap and the text after it, as models trained for it expect them."""

from __future__ import annotations

from gateway.text.tokens import TokenText

#: The special tokens before the prefix, before the suffix, and before what is to be filled in, by family of models.
_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek Coder
)


def infill_ids(tokens: TokenText, prefix: str, suffix: str) -> list[int] | None:
    """The prompt that asks for the text between `prefix` and `suffix`; None for a model that has no tokens for it."""
    for marks in _MARKS:
        before, after, middle = map(tokens.token_id, marks)
        if before is not None and after is not None and middle is not None:
            pieces = tokens.encode_continuation(prefix), tokens.encode_continuation(suffix)
            return [*tokens.encode(""), before, *pieces[0], after, *pieces[1], middle]
    return None
