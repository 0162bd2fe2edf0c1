"""Fill-in-the-middle (FIM): the prompt that asks a model for the text between a prefix and a suffix."""

from __future__ import annotations

from gateway.text.tokens import TextTokenizer

#: Per model family: the special tokens before the prefix, before the suffix, and before the generated middle.
_FIM_TOKENS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen Coder, CodeGemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581hole\uff5c>", "<\uff5cfim\u2581end\uff5c>"),  # DeepSeek Coder
)


def infill_ids(tokens: TextTokenizer, prefix: str, suffix: str) -> list[int] | None:
    """Token ids of a FIM prompt. None if the vocabulary has no complete set of FIM tokens."""
    for names in _FIM_TOKENS:
        prefix_id, suffix_id, middle_id = map(tokens.token_id, names)
        if prefix_id is not None and suffix_id is not None and middle_id is not None:
            before, after = tokens.encode_continuation(prefix), tokens.encode_continuation(suffix)
            return [*tokens.encode(""), prefix_id, *before, suffix_id, *after, middle_id]
    return None
